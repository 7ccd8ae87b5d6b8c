"""A zoo on a pretrained language model: LoRAs of MiniLM, each trained here on one noun of WordNet and its gloss."""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.adapters.reading.naming import layer_names
from lorabench.errors import LorabenchError
from lorabench.options import AtLeast, Filled, OneOf, check_arguments
from lorabench.storage import file_sha256
from lorabench.zoo import gloss_model, gloss_texts, making, minilm, wordnet, wordpiece
from lorabench.zoo.gloss_model import Loras, TextBase, Training, load_text_base, train_loras
from lorabench.zoo.gloss_texts import Gloss, bag_of_words, groups_of, read_glosses
from lorabench.zoo.labels import Labels
from lorabench.zoo.making import Count, Init, OwnSeed, Rate, Seed, check_name, counted, own_seed
from lorabench.zoo.store import Module, Stack, StoreWriter, Zoo, open_store

__all__ = ["load"]

_CEILINGS = ("embedding", "words")


@dataclass(frozen=True)
class _Recipe:
    """All that the adapters depend on, besides the code, the base's files and WordNet's."""

    init: Init
    rank: Count
    layers: Count
    per_category: Count
    negatives: Count
    steps: Count
    learning_rate: Rate
    temperature: Rate
    longest: Annotated[int, AtLeast(3)]
    together: Count
    seed: Seed
    training_seed: OwnSeed = None

    def __post_init__(self) -> None:
        check_arguments(_Recipe, vars(self), "dataset.")


def load(
    name: str,
    model: Annotated[str, Filled()],
    wordnet: Annotated[str | None, Filled()],
    ceiling: Annotated[str, OneOf(_CEILINGS)],
    cache_dir: str | Path,
    **recipe: Any,
) -> Zoo:
    """The gloss zoo: trained on the first call, memory-mapped from `cache_dir`/zoos afterwards.

    One LoRA (scale 1) on query and value of the base's last layers is trained for each chosen noun of WordNet that has
    no kinds, under ten roots (`gloss_texts.ROOTS`): the embedding of its gloss shall find its lemma among those of
    other nouns, and that of its lemma its gloss. All have the same recipe, which `labels.recipe` says. Nouns that share
    a lemma are one group.

    Args:
        name: how results call the zoo.
        model: the base, `minilm` or a folder with a BERT as transformers writes it.
        wordnet: folder with data.noun and index.noun; None for Debian's.
        ceiling: `embedding`, the base's of lemma and gloss, [N, 1, d]; `words`, which words they have, [N, 1, words].
            It makes no other adapters.
        cache_dir: where the zoo is kept.
        recipe: init (`shared`, every adapter starts from the same down matrix; `independent`, each from its own), rank
            of every module, layers (the last so many carry a LoRA), per_category (at most so many leaves a root, by a
            seeded choice), negatives (other nouns in the pool), steps and learning_rate of Adam, temperature of the
            loss, longest (tokens of a text that are read), together (adapters trained at once, which changes speed and
            rounding alone), seed (of all that is drawn), training_seed (of the adapters' starts; None: seed).

    Raises:
        LorabenchError: an argument is out of range, the base or WordNet is not there or is another, the disk is full.
    """
    check_name(name)
    check_arguments(load, {"model": model, "wordnet": wordnet, "ceiling": ceiling}, "dataset.")
    made = _Recipe(**recipe)
    sources = _Sources(None if model == minilm.MINILM else Path(model), None if wordnet is None else Path(wordnet))
    path = Path(cache_dir).expanduser() / "zoos" / f"{name}-{_key(made, sources)}"
    build = functools.partial(_build, name, made, sources, path)
    zoo = making.made_once(path, path.with_suffix(".lock"), functools.partial(open_store, path), build)
    zoo = replace(zoo, texts=functools.partial(_leaf_texts, made, sources))
    return _with_words(zoo, made, sources) if ceiling == "words" else zoo


def _leaf_texts(recipe: _Recipe, sources: "_Sources") -> dict[str, str]:
    """Lemma and gloss of every leaf, which are read again."""
    return {gloss.name: _text(gloss) for gloss in sources.chosen(recipe)[0]}


def _text(gloss: Gloss) -> str:
    return f"{gloss.lemma}: {gloss.gloss}"


@dataclass(frozen=True)
class _Sources:
    """Where base and texts come from; None is MiniLM's package, and Debian's WordNet."""

    base: Path | None
    texts: Path | None

    def hashes(self) -> dict[str, str]:
        """Of all files: of another base or other texts another zoo is made.

        Those of the packages are known and not read, so that a zoo that is there needs neither.
        """
        base = minilm.SHA256 if self.base is None else _hashes(self.base, minilm.SHA256, "dataset.model")
        texts = wordnet.SHA256 if self.texts is None else _hashes(self.texts, wordnet.SHA256, "dataset.wordnet")
        return {**base, **texts}

    def chosen(self, recipe: _Recipe) -> tuple[list[Gloss], list[Gloss]]:
        """One leaf an adapter; and the pool of other nouns."""
        found = read_glosses(self.texts or wordnet.debian_folder())
        return found.sample(recipe.per_category, recipe.seed), found.negatives(recipe.negatives, recipe.seed)


def _hashes(folder: Path, names: Mapping[str, str], key: str) -> dict[str, str]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise LorabenchError(f"{key}={folder}: it has no {missing[0]}. Give a folder with {', '.join(names)}.")
    return {name: file_sha256(folder / name) for name in names}


def _key(recipe: _Recipe, sources: _Sources) -> str:
    """See `making.hash_of`."""
    modules = (gloss_model, gloss_texts, wordnet, wordpiece)
    parts = (sorted(asdict(recipe).items()), sorted(sources.hashes().items()))
    return making.hash_of(parts, (__file__, *(module.__file__ for module in modules)), ("torch", "numpy"))


def _build(name: str, recipe: _Recipe, sources: _Sources, path: Path, pool: ThreadPoolExecutor) -> None:
    base = load_text_base(sources.base or minilm.minilm_folder(), recipe.longest)
    if recipe.layers > base.layers:
        raise LorabenchError(f"dataset.layers={recipe.layers}: the base has {base.layers}")
    if recipe.rank > base.width:
        raise LorabenchError(f"dataset.rank={recipe.rank}: the base's modules are {base.width} × {base.width}")
    chosen, others = sources.chosen(recipe)
    ceiling = pool.submit(_embedded, base, chosen).result()
    layers = _train(name, recipe, base, chosen, others, pool)
    modules = tuple(Module(module, *layer_names(module)) for module in base.modules(recipe.layers))
    size = (len(chosen), len(modules))
    with StoreWriter(path, {layer: values.shape[1:] for layer, values in layers.items()}) as store:
        store.append(layers)
        store.finish(
            name, modules, np.full(size, recipe.rank), np.ones(size, np.float32), _labels(recipe, chosen), ceiling
        )


def _embedded(base: TextBase, chosen: Sequence[Gloss]) -> Float32[np.ndarray, "n 1 d"]:
    """What the base alone knows of every leaf's texts."""
    with torch.no_grad():
        found: np.ndarray = base.embed([_text(gloss) for gloss in chosen])[:, None].numpy()
    return found


def _train(
    name: str, recipe: _Recipe, base: TextBase, chosen: list[Gloss], others: list[Gloss], pool: ThreadPoolExecutor
) -> dict[str, Float32[np.ndarray, "n rows cols"]]:
    """Every layer of every adapter. Glosses of like length are trained together, so that there is little padding."""
    training = Training(
        recipe.rank, recipe.init == "shared", recipe.layers, recipe.steps, recipe.learning_rate, recipe.temperature,
        own_seed(recipe.seed, recipe.training_seed),
    )  # fmt: skip
    order = sorted(range(len(chosen)), key=lambda place: len(chosen[place].gloss))
    groups = [order[start : start + recipe.together] for start in range(0, len(order), recipe.together)]
    shape = (len(chosen), recipe.layers, 2, recipe.rank, base.width)
    made = Loras(torch.empty(shape), torch.empty(shape).mT.contiguous())
    with counted(f"Training {name}", len(chosen)) as advance:
        pools = pool.submit(_pools, base, others).result()

        def train(group: list[int]) -> Loras:
            return train_loras(base, [chosen[place] for place in group], pools, training, advance)

        for group, loras in zip(groups, pool.map(train, groups), strict=True):
            made.down[group], made.up[group] = loras.down, loras.up
    layers = {}
    for number, module in enumerate(base.modules(recipe.layers)):
        for layer, factor in zip(layer_names(module), (made.down, made.up), strict=True):
            layers[layer] = factor[:, number // 2, number % 2].contiguous().numpy()
    return layers


def _pools(base: TextBase, others: Sequence[Gloss]) -> Float[Tensor, "2 k d"]:
    with torch.no_grad():
        return torch.stack([base.embed([one.lemma for one in others]), base.embed([one.gloss for one in others])])


def _labels(recipe: _Recipe, chosen: Sequence[Gloss]) -> Labels:
    made = {
        "texts": 2,
        "steps": recipe.steps,
        "samples": 2 * recipe.steps,
        "learning_rate": recipe.learning_rate,
        "shared_start": recipe.init == "shared",
    }
    return Labels.of(
        [f"{gloss.category.replace(' ', '_')}/{gloss.name}" for gloss in chosen],
        [gloss.category for gloss in chosen],
        [gloss.name for gloss in chosen],
        groups_of(chosen),
        recipe={key: np.full(len(chosen), value, np.float64) for key, value in made.items()},
    )


def _with_words(zoo: Zoo, recipe: _Recipe, sources: _Sources) -> Zoo:
    """The same adapters beside the words of their texts, which are read again."""
    words = bag_of_words(sources.chosen(recipe)[0])
    return replace(zoo, ceiling=Stack((words,)), fingerprint=f"{zoo.fingerprint}-words")
