"""Findings of ablation phases, made up: what `Result.ablation` holds, without a training."""

import json
import math
from dataclasses import replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import pdist, squareform

from lorabench.adapters.places import by_depth, groups
from lorabench.adapters.reading.naming import layer_names
from lorabench.findings import read_finding, written_finding
from lorabench.results import METRICS, Result, Run, summarise
from lorabench.text import to_json
from tests.hub_schema import stable_diffusion_modules

CHANCE = 0.1
CLASSES = ["Latin", "Greek", "Cyrillic", "Hebrew", "Arabic", "Devanagari", "Kana", "Hangul", "Runes", "Dingbats"]
REPRESENTATIONS = (
    "stats", "norms", "distribution", "spectral", "frequency", "information", "matrices", "coupling", "ensemble",
    "flat", "pca", "delta_pca", "delta_spectral", "delta_information", "components", "contrastive_unet",
)  # fmt: skip


def as_json(found):
    """A finding as results.json has it."""
    return json.loads(to_json(written_finding(found)))


def with_changes(result, **changes):
    """The result with other values in its finding, as results.json would have them."""
    return replace(result, ablation=read_finding({**as_json(result.ablation), **changes}))


def zoo_layers(kind):
    """Names of the layers of a few real networks."""
    modules = {
        "glyphs-12": [f"unet.transformer_blocks.{b}.attn1.{p}" for b in range(2) for p in ("to_q", "to_k", "to_v")],
        "glyphs-32": [
            f"unet.transformer_blocks.{b}.attn1.{p}" for b in range(4) for p in ("to_q", "to_k", "to_v", "to_out.0")
        ],
        "sd-128": list(stable_diffusion_modules()),
        "llm-448": [
            f"model.layers.{b}.{p}"
            for b in range(32)
            for p in (
                "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
            )
        ],
        "flux": [
            *(f"transformer.transformer_blocks.{b}.attn.{p}" for b in range(19) for p in ("to_q", "to_k", "add_q")),
            *(f"transformer.transformer_blocks.{b}.ff.net.0.proj" for b in range(19)),
            *(f"transformer.single_transformer_blocks.{b}.attn.to_q" for b in range(38)),
            "transformer.proj_out", "transformer.x_embedder",
        ],
        "counted": [f"unet.{number}" for number in range(12)],
        "toy": ["lin0", "lin1"],
    }[kind]  # fmt: skip
    return [layer for module in modules for layer in layer_names(module)]


def ranking(layers, seeds=3, unknown=False, rng=None):
    rng = rng or np.random.default_rng(0)
    rows = []
    for place, layer in enumerate(by_depth(layers)):
        middle = 0.12 + 0.25 * math.exp(-(((place / len(layers)) - 0.6) ** 2) / 0.05) * (
            1.3 if "up.w" in layer else 0.7
        )
        per_seed = (middle + 0.02 * rng.standard_normal(seeds)).tolist()
        mean = float(np.mean(per_seed))
        rows.append({
            "layer": layer, "accuracy": mean, "low": None if unknown else mean - 0.03,
            "high": None if unknown else mean + 0.035, "std": None if seeds == 1 else float(np.std(per_seed, ddof=1)),
            "val_accuracy": mean, "test_accuracy": mean - 0.01, "per_seed": per_seed, "p": None, "holm": None,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["accuracy"])
    return [{**row, "rank": i + 1, "tied_to": min(i + 1 + i % 5, len(rows))} for i, row in enumerate(rows)]


def member_runs(representation, ablation, seeds, level, rng, classes):
    runs = []
    for seed in range(seeds):
        metrics = {name: float(np.clip(level + 0.02 * rng.standard_normal(), 0, 1)) for name in METRICS}
        history = [
            {"train_loss": 2 / (e + 1), "val_loss": 2 / (e + 1) + 0.1 * e, "val_accuracy": 0.5, "learning_rate": 1e-3}
            for e in range(5)
        ]
        counts = rng.integers(0, 9, (classes, classes)).tolist()
        runs.append(Run(representation, ablation, seed, 2, 5, metrics, counts, history))
    return runs


def steps(layers, level, rng, unknown):
    return [
        {
            "layers": count, "unit": layers[count - 1] if count else None, "accuracy": level(count), "std": 0.02,
            "low": None if unknown else level(count) - 0.03, "high": None if unknown else level(count) + 0.03,
        }
        for count in range(len(layers) + 1)
    ]  # fmt: skip


def found_curve(ranked, rng, unknown):
    total = len(ranked)
    remove = steps(ranked, lambda k: 0.5 - 0.4 * (k / total) ** 0.5, rng, unknown)
    keep = steps(ranked, lambda k: 0.1 + 0.4 * (1 - math.exp(-4 * k / total)), rng, unknown)[1:]
    random = [
        {"layers": k, "accuracy": 0.5 - 0.4 * (k / total) ** 3, "low": 0.47 - 0.4 * (k / total) ** 3,
         "high": 0.53 - 0.4 * (k / total) ** 3}
        for k in sorted({round(total * share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)})
    ]  # fmt: skip
    return {"representation": "stats", "remove": remove[:-1], "keep": keep, "random": random}


def found_groups(layers, by, unknown):
    rows = []
    for number, (group, members) in enumerate(groups(layers, by).items()):
        mean = 0.2 + 0.02 * (number % 8)
        ends = {"low": None, "high": None} if unknown else {"low": mean - 0.04, "high": mean + 0.04}
        statistic = {"mean": mean, "std": 0.02, "n": 3, **ends}
        lost = -0.005 * (number % 5)
        rows.append({
            "group": group, "layers": len(members), "alone": statistic,
            "without": None if number == 0 else {**statistic, "mean": mean + 0.2, "low": None, "high": None},
            "val_accuracy": mean, "lost": None if number == 0 else {
                "difference": lost, "low": None if unknown else lost - 0.02, "high": None if unknown else lost + 0.02,
                "p": 0.04, "seeds": 3, "adapters": 198,
            },
        })  # fmt: skip
    return {"by": by, "representation": "stats", "rows": rows}


def found_clusters(layers, rng):
    points = np.array([[i // 7, *0.4 * rng.standard_normal(3)] for i in range(len(layers))])
    tree = linkage(pdist(points), "average")
    threshold = 1.2
    return {
        "layers": list(layers), "order": leaves_list(tree).tolist(), "linkage": tree.tolist(),
        "cluster": fcluster(tree, threshold, "distance").tolist(),
        "distance": squareform(pdist(points)).tolist(), "threshold": threshold, "between_seeds": threshold,
    }  # fmt: skip


def found_concepts(layers, classes, rng):
    recall = rng.uniform(0, 0.8, (len(layers), len(classes)))
    best = {
        name: {"layer": layers[int(recall[:, i].argmax())], "val_recall": 0.7, "recall": float(recall[:, i].max())}
        for i, name in enumerate(classes)
    }
    table = recall.tolist()
    for row in table:
        row[-1] = None
    del best[classes[-1]]
    return {
        "classes": list(classes),
        "layers": list(layers),
        "recall": table,
        "best": best,
        "tau_between_classes": 0.21,
        "tau_within_classes": 0.43,
    }


def add_arms(found, ranked, representations, controls, seeds, failed, unknown):
    """Puts arms and differences into `found`; the accuracy of every arm."""
    levels = {"none": 0.55, "top-5": 0.47}
    found["arms"] = [{"name": "none", "kind": "none", "removed": []},
                     {"name": "top-5", "kind": "top", "removed": ranked[:5]}]  # fmt: skip
    more = {
        "random": ({"name": "random-5", "draws": [ranked[i : i + 5] for i in (5, 9, 14)]}, 0.54),
        "worst": ({"name": "worst-5", "removed": ranked[-5:]}, 0.56),
        "permuted": ({"name": "permuted", "removed": []}, 0.1),
    }
    for control in controls:
        arm, level = more[control]
        found["arms"].append({**arm, "kind": control})
        levels[arm["name"]] = level
    found["differences"] = [
        {"representation": name, "ablation": arm, "against": "none", "difference": levels[arm] - 0.55,
         "low": None if unknown else levels[arm] - 0.59, "high": None if unknown else levels[arm] - 0.51,
         "p": 0.0213, "seeds": seeds, "adapters": 198}
        for name in representations if name != failed for arm in levels if arm not in ("none", "permuted")
    ]  # fmt: skip
    if "random" in controls:
        # Told apart from random removal for the first representation alone.
        found["differences"] += [
            {"representation": name, "ablation": "top-5", "against": "random-5", "difference": -0.07, "low": -0.11,
             "high": -0.03 if number == 0 else 0.01, "p": 0.01, "seeds": seeds, "adapters": 198}
            for number, name in enumerate(representations) if name != failed
        ]  # fmt: skip
    return levels


def found_attribution(depth, alone, seeds, rng):
    share = rng.dirichlet(np.ones(len(depth)))
    return {"representation": "stats", "kendall_tau": 0.31, "rows": [
        {"layer": layer, "share": float(share[i]), "std": None if seeds == 1 else 0.002, "accuracy": alone[layer]}
        for i, layer in enumerate(depth)
    ]}  # fmt: skip


def found_redundancy(depth, alone, rng):
    drop = 0.01 * rng.standard_normal(len(depth))
    return {"representation": "stats", "kendall_tau": 0.12, "rows": [
        {"layer": layer, "accuracy": alone[layer], "drop": float(drop[i]), "low": float(drop[i]) - 0.01,
         "high": float(drop[i]) + 0.01, "p": 0.2} for i, layer in enumerate(depth)
    ]}  # fmt: skip


PHASES = (
    "layers", "top_k", "compare", "progressive", "grouping", "clusters", "concepts", "attribution", "redundancy",
)  # fmt: skip
PICTURES = {
    "layers": set(), "top_k": {"with_without"}, "compare": {"with_without"}, "progressive": {"degradation"},
    "grouping": {"groups"}, "clusters": {"clusters"}, "concepts": {"concepts"}, "attribution": {"attribution"},
    "redundancy": {"redundancy"},
}  # fmt: skip


def an_ablation(
    phase, kind="glyphs-32", rank_on="val", representations=("stats",), seeds=3, unknown=False,
    controls=("random", "worst", "permuted"), by="projection", failed=None, classes=CLASSES,
):  # fmt: skip
    """A result with plausible findings of one phase."""
    rng = np.random.default_rng(1)
    layers = zoo_layers(kind)
    rows = ranking(layers, seeds, unknown, rng)
    ranked, depth = [row["layer"] for row in rows], by_depth(layers)
    alone = {row["layer"]: row["accuracy"] for row in rows}
    stability = {"kendall_tau": None, "lowest": None, "seeds": 1}
    if seeds > 1:
        stability = {"kendall_tau": 0.61, "lowest": 0.52, "seeds": seeds}
    found = {"name": phase, "rank_on": rank_on}
    module = "compare" if phase == "top_k" else phase
    if phase != "grouping":
        found |= {"baseline": "stats", "ranking": rows, "stability": stability, "dropped_seeds": [], "folds": 1}
    if phase in ("layers", "top_k", "compare"):
        key = "top_layers" if phase == "layers" else "removed"
        found |= {"top_k": 5, key: ranked[:5]} | (
            {"depth": []} if phase == "layers" else {"margin": 0.03, "verdicts": []}
        )
    levels = {"none": 0.55}
    if phase in ("top_k", "compare"):
        levels |= add_arms(found, ranked, representations, controls, seeds, failed, unknown)
    elif phase == "grouping":
        found["groups"] = found_groups(layers, by, unknown)
    elif phase != "layers":
        key, makes = {
            "progressive": ("curve", lambda: found_curve(ranked, rng, unknown)),
            "clusters": ("clusters", lambda: found_clusters(depth, rng)),
            "concepts": ("concepts", lambda: found_concepts(depth, classes, rng)),
            "attribution": ("attribution", lambda: found_attribution(depth, alone, seeds, rng)),
            "attention": ("attention", lambda: found_attribution(depth, alone, seeds, rng)),
            "redundancy": ("redundancy", lambda: found_redundancy(depth, alone, rng)),
        }[phase]
        found[key] = makes()
        found |= {"tau_low": 0.1, "tau_high": 0.5} if phase == "attention" else {}
    runs, summary = [], []
    for number, name in enumerate(representations):
        for arm, level in levels.items():
            level = level + 0.1 * math.sin(number) * (arm != "permuted")
            members = member_runs(name, arm, seeds, level, rng, len(classes))
            if name == failed:
                members = [Run(name, arm, 0, error="the weights are not finite")]
            runs += members
            summary.append(summarise(members, "mlp", len(layers), 0 if name == failed else 28 * len(layers), True))
    return Result(
        dataset={"name": kind, "adapters": 990, "layers": len(layers), "modules": len(layers) // 2},
        split={"train": 693, "val": 99, "test": 198, "by_source": False}, target="category", classes=list(classes),
        chance=CHANCE, config={"seed": 0}, runs=runs, summary=summary, seconds={}, environment={},
        ablation=read_finding({"phase": module, **found}),
    )  # fmt: skip
