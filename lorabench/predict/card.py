"""The README.md of a model's folder."""

from lorabench.predict import ERROR, STRANGERS
from lorabench.predict.model import Model
from lorabench.predict.reading import LEAST_PRESENT, MOST_LOST
from lorabench.text import counted, some

__all__ = ["card"]

_GAUGE = {
    True: "The features follow from ΔW alone: how ΔW is split into factors changes nothing.",
    False: "The features follow from the factors: the same ΔW split otherwise may be read otherwise.",
}


def card(model: Model) -> str:
    """What a model was trained on, how often it is right, where its word ends, and how it is asked."""
    known = model.trained_on
    largest = max(module.rank for module in model.modules)
    return f"""# What was this adapter trained on? A model of {known["dataset"]}

Written by `lorabench export`. Of a LoRA adapter it says the {model.target} that it was trained on, or that it does not
know.

| | |
|---|---|
{_facts(model, largest)}

## Use

```sh
lorabench predict DIR FILE... --error {ERROR:g} --strangers {STRANGERS:g}
```

## What is promised

{_promise(model)}

## Limits

- An adapter of another base model with the same names and shapes, or of another recipe, is refused only as far as its
  ΔW shows it.
- A category that the training did not have is named as one of those it had, unless its ΔW is unlike theirs.
- Adapters with fewer than {LEAST_PRESENT:.0%} of the modules are refused. Missing ones are read as zero, and nothing is
  promised then.
- A rank above {largest} is brought to {largest}; where more than {MOST_LOST:.0%} of ‖ΔW‖² would be lost, it is refused.
- {_GAUGE[bool(model.representation.gauge_invariant)]}
"""


def _promise(model: Model) -> str:
    known = model.trained_on
    leaves = "leaves that trained nothing" if known["held_out_leaves"] else "further adapters of the same leaves"
    return f"""Of adapters that are drawn as the test adapters were (of the same base model, recipe and mix of classes,
of {leaves}), with `--error E --strangers S`:

- at most E have a right class that is too unlikely to be named;
- at most S are turned away as strangers, whatever their class, and then none is named;
- so the right class is among those named for at least 1 - E - S of them: {1 - ERROR - STRANGERS:.0%} with the defaults,
  {ERROR:g} and {STRANGERS:g}.

Calibrated on {known["groups"]} groups of adapters, so no E or S below {1 / (known["groups"] + 1):.3f} can be promised:
all classes are named then, and nobody is turned away. The calibrating adapters trained nothing and chose no setting of
the members. If this representation was picked because a table of results on these very adapters had it first, they did
choose that: test accuracy and promise are then somewhat too good, the less so the fewer were compared."""


def _facts(model: Model, largest: int) -> str:
    known = model.trained_on
    low, high = (100 * end for end in known["interval"])
    facts = {
        "classes": f"{len(model.classes)}: {some(model.classes, 12)}",
        "trained on": f"{known['train']} adapters of {known['dataset']}",
        "chosen by": f"{known['val']} others: when to stop, one of several settings, and the temperature",
        "calibrated on": f"{known['test']} others, the test adapters, which trained nothing",
        "reads": f"`{known['representation']}` of {counted(len(model.modules), 'module')}, ranks up to {largest}",
        "members": f"{len(model.seeds)}, {model.classifier['class'].rpartition('.')[2]}, probabilities averaged",
        "test accuracy": f"{100 * known['accuracy']:.1f} % [{low:.1f}, {high:.1f}] (95 %, by groups)",
        "chance": f"{100 * known['chance']:.1f} %",
        "temperature": f"{model.temperature:.2f}",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())
