"""Every rule speaks where it should and is silent elsewhere; thresholds of one's own; nothing flaps."""

import importlib
import math
import pkgutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench import health
from lorabench.adapters import LoraModule
from lorabench.errors import LorabenchError
from lorabench.health import SEVERITIES, Snapshot, Watch, module_metrics, read_thresholds
from lorabench.health import rules as rules_package
from lorabench.health.rules import rules
from lorabench.health.rules.base import Look, Thresholds

SHIPPED = Path(health.__file__).with_name("thresholds.yaml")


@cache
def sound():
    """A module that no rule speaks of, beside a base: ρ and the ratio of norms about 0.1."""
    rng = np.random.default_rng(0)
    down, up = (torch.tensor(rng.normal(size=size), dtype=torch.float32) for size in ((4, 32), (24, 4)))
    (row,) = module_metrics({"m": LoraModule(down, up, 0.5)})
    return replace(row, base_sigma_max=10 * row.sigma_max, base_frobenius=10 * row.frobenius)


def series(steps, **values):
    """Looks at one module whose metrics go through these values."""
    rows = [replace(sound(), **{name: value[i] for name, value in values.items()}) for i in range(len(steps))]
    past = list(zip(steps, rows, strict=True))
    return Look(rows[-1], steps[-1], past[:-1])


def alone(**values):
    return Look(replace(sound(), **values))


UP_TO = list(range(100, 1001, 100))
CASES = {
    "not_finite": (alone(finite=False, sigma_max=None), alone()),
    "untrained": (alone(untrained=True, sigma_max=0.0, kappa_B=None), alone()),
    "stuck_dimensions": (alone(stuck_dimensions=(1, 2)), alone(dead_dimensions=(1, 2))),
    "low_rank_use": (alone(stable_rank=1.1, nominal_rank=16), alone(stable_rank=1.5, nominal_rank=16)),
    "quarter_of_nominal": (alone(rank_utilization=0.24), alone(rank_utilization=0.26)),
    "ill_conditioned": (alone(kappa_A=1001.0), alone(kappa_A=999.0)),
    "dominating": (alone(base_sigma_max=3 * sound().sigma_max), alone(base_sigma_max=3.5 * sound().sigma_max)),
    "scale_too_large": (alone(base_frobenius=1.9 * sound().frobenius), alone(base_frobenius=2.1 * sound().frobenius)),
    "scale_too_small": (alone(base_frobenius=2e4 * sound().frobenius), alone(base_frobenius=9e3 * sound().frobenius)),
    "collapsed_early": (
        series([10, 20, 30], rank_utilization=[0.4, 0.9, 0.4]),
        series([10, 20, 130], rank_utilization=[0.4, 0.9, 0.4]),
    ),
    "saturated": (
        series(UP_TO, rank_utilization=[0.1 * i for i in range(1, 5)] + [0.5, 0.501, 0.502, 0.503, 0.504, 0.504]),
        series(UP_TO, rank_utilization=[0.4 + 0.01 * i for i in range(10)]),
    ),
    "sigma_spike": (
        series([30, 40, 50, 60], sigma_max=[1.0, 1.1, 1.2, 3.4]),
        series([30, 40, 50, 60], sigma_max=[1.0, 1.1, 1.2, 3.2]),
    ),
    "never_moves": (
        series([30, 40, 50], frobenius_BA=[1.0, 1.0, 1.0]),
        series([30, 40, 50], frobenius_BA=[1.0, 1.0, 1.000001]),
    ),
}


def asked(name, look):
    """What one rule says of one look, after the looks before it."""
    watch = Watch(names=[name])
    for step, row in look.past:
        watch.look(Snapshot(step, {"m": row}))
    return watch.look(Snapshot(look.step, {"m": look.now}))


def test_every_file_of_rules_is_a_rule_with_its_thresholds_its_remedy_and_a_case():
    on_disk = {one.name for one in pkgutil.iter_modules(rules_package.__path__)} - {"base"}
    assert on_disk == set(rules()) == set(yaml.safe_load(SHIPPED.read_text())) == set(CASES)
    for name, rule in rules().items():
        module = importlib.import_module(f"lorabench.health.rules.{name}")
        assert (module.__all__, module.RULE) == (["RULE"], rule)
        for text in (rule.action, rule.source):
            assert len(text) > 20, name
            assert "\n" not in text
        thresholds = read_thresholds()[name]
        assert thresholds.limits
        order = [thresholds.limits[severity] for severity in SEVERITIES if severity in thresholds.limits]
        assert order == sorted(order, reverse=not rule.above), "a graver limit lies further out"


@pytest.mark.parametrize("name", CASES)
def test_every_rule_speaks_where_it_should_and_is_silent_elsewhere(name):
    loud, quiet = CASES[name]
    (alert,) = asked(name, loud)
    assert asked(name, quiet) == []
    rule, limits = rules()[name], read_thresholds()[name].limits
    assert (alert.rule, alert.modules, alert.judged, alert.step, alert.new) == (name, ("m",), 1, loud.step, True)
    assert alert.severity in SEVERITIES
    assert alert.limit in limits.values()
    assert (alert.value > alert.limit) if rule.above else (alert.value < alert.limit)
    assert alert.message.startswith("m")
    assert "None" not in alert.message
    assert (alert.action, alert.source) == (rule.action, rule.source)


@pytest.mark.parametrize("name", CASES)
def test_no_rule_stumbles_over_what_has_no_ratio(name):
    down, up = torch.ones(3, 5), torch.ones(4, 3)
    rows = module_metrics(
        {
            "untrained": LoraModule(down, 0 * up),
            "scale 0": LoraModule(down, up, 0.0),
            "odd": LoraModule(down * math.nan, up),
            "nothing": LoraModule(0 * down, 0 * up),
            "rank 1": LoraModule(down[:1], up[:, :1]),
            "wider than it is": LoraModule(torch.eye(9, 5), torch.eye(4, 9)),
            "infinite base": LoraModule(down, up),
        }
    )
    rows[-1] = replace(rows[-1], base_sigma_max=0.0, base_frobenius=0.0)
    watch = Watch(names=[name])
    for step in (0, 500, 1000, 1500):
        for alert in watch.look(Snapshot(step, {row.module: row for row in rows})):
            assert not math.isnan(alert.value)
            assert "nan" not in alert.message
    assert Watch(names=[name]).look(Snapshot(None, {})) == []


def test_an_adapter_that_is_sound_is_not_spoken_of():
    assert Watch().look(Snapshot(None, {"m": sound()})) == []
    assert Watch(names=rules()).look(Snapshot(None, {"m": sound()})) == []


def test_rules_are_asked_by_name_or_as_the_file_says():
    weak = replace(sound(), rank_utilization=0.2)
    assert Watch().look(Snapshot(None, {"m": weak})) == []
    (alert,) = Watch(names=["quarter_of_nominal"]).look(Snapshot(None, {"m": weak}))
    assert alert.rule == "quarter_of_nominal"
    assert Watch(names=[]).look(Snapshot(None, {"m": replace(sound(), finite=False)})) == []
    with pytest.raises(LorabenchError, match=r"rule dominatng, rank: there is none. Rules are collapsed_early, domin"):
        Watch(names=["rank", "dominating", "dominatng"])
    with pytest.raises(LorabenchError, match="rule mine: there is none"):
        Watch(thresholds={"mine": Thresholds({"note": 1.0})})


def test_the_gravest_limit_counts_and_the_gravest_alert_comes_first():
    rows = {
        "note": replace(sound(), stable_rank=1.01, nominal_rank=64),
        "warning": replace(sound(), base_sigma_max=3 * sound().sigma_max),
        "error": replace(sound(), base_sigma_max=1.5 * sound().sigma_max),
        "fine": sound(),
        "fine too": sound(),
    }
    first, second = Watch().look(Snapshot(None, {name: replace(row, module=name) for name, row in rows.items()}))
    assert (first.rule, first.severity, first.limit, first.modules) == (
        "dominating",
        "error",
        0.5,
        ("error", "warning"),
    )
    assert (second.rule, second.severity, second.modules) == ("low_rank_use", "note", ("note",))
    assert first.value == pytest.approx(1 / 1.5)
    assert first.judged == 5
    assert first.message.startswith("2 of 5 modules: error: ")


def test_of_rules_that_speak_below_their_limits_the_lowest_is_the_worst():
    rows = {str(use): replace(sound(), rank_utilization=use) for use in (0.2, 0.1, 0.9, 0.15)}
    (alert,) = Watch(names=["quarter_of_nominal"]).look(Snapshot(None, rows))
    assert alert.modules == ("0.1", "0.15", "0.2")
    assert alert.value == 0.1


@pytest.mark.parametrize(("bad", "severity"), [(2, "warning"), (3, "error"), (4, "error")])
def test_most_is_more_than_half_of_what_was_judged(bad, severity):
    broken = replace(sound(), untrained=True, kappa_B=None)
    rows = {str(i): broken if i < bad else sound() for i in range(4)}
    rows |= {f"nan {i}": replace(sound(), finite=False) for i in range(5)}  # of which the rule has nothing to say
    (alert,) = Watch(names=["untrained"]).look(Snapshot(None, rows))
    assert (alert.severity, alert.judged) == (severity, 4)
    assert alert.limit == 0.5


def test_a_value_that_wobbles_about_the_limit_does_not_flap():
    watch = Watch(names=["dominating"])  # warning above 0.3, silent again at 0.27
    said = []
    for step, dominance in enumerate((0.29, 0.31, 0.29, 0.31, 0.275, 0.31, 0.26, 0.29, 0.31)):
        row = replace(sound(), base_sigma_max=sound().sigma_max / dominance)
        alerts = watch.look(Snapshot(step, {"m": row}))
        said.append((alerts[0].severity, alerts[0].new) if alerts else None)
    on, still = ("warning", True), ("warning", False)
    assert said == [None, on, still, still, still, still, None, None, on]


def test_a_gravity_that_wobbles_does_not_flap_either():
    watch = Watch(names=["dominating"])  # error above 0.5, a warning again at 0.45
    said = []
    for step, dominance in enumerate((0.4, 0.51, 0.49, 0.46, 0.44, 0.49, 0.28, 0.26)):
        row = replace(sound(), base_sigma_max=sound().sigma_max / dominance)
        alerts = watch.look(Snapshot(step, {"m": row}))
        said.append((alerts[0].severity, alerts[0].new) if alerts else None)
    assert said == [
        ("warning", True), ("error", True), ("error", False), ("error", False), ("warning", False),
        ("warning", False), ("warning", False), None,
    ]  # fmt: skip


def test_below_a_limit_the_way_back_is_upwards():
    watch = Watch({"quarter_of_nominal": Thresholds({"warning": 0.2}, clear=0.5)}, ["quarter_of_nominal"])
    said = []
    for step, use in enumerate((0.25, 0.19, 0.3, 0.39, 0.41, 0.3, 0.19)):
        said.append(bool(watch.look(Snapshot(step, {"m": replace(sound(), rank_utilization=use)}))))
    assert said == [False, True, True, True, False, False, True]


def test_each_module_is_on_or_off_by_itself():
    watch = Watch(names=["dominating"])
    loud, between = (replace(sound(), base_sigma_max=sound().sigma_max / rho) for rho in (0.31, 0.29))
    (first,) = watch.look(Snapshot(1, {"a": loud, "b": between}))
    (second,) = watch.look(Snapshot(2, {"a": between, "b": between}))
    assert (first.modules, second.modules) == (("a",), ("a",))
    assert watch.look(Snapshot(3, {"b": between})) == []
    (fourth,) = watch.look(Snapshot(4, {"a": between, "b": between}))  # it was away, and has not gone back
    assert (fourth.modules, fourth.new) == (("a",), True)
    odd = replace(sound(), base_sigma_max=None)
    assert watch.look(Snapshot(5, {"a": odd})) == []
    assert watch.look(Snapshot(6, {"a": between})) == []  # nothing was known of it, and it starts anew
    assert [one.step for one in watch.snapshots] == [1, 2, 3, 4, 5, 6]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30), st.floats(0.1, 1.0))
def test_hysteresis_is_that_of_a_switch_with_two_ends(values, clear):
    limit, on = 0.3, False
    watch = Watch({"dominating": Thresholds({"warning": limit}, clear=clear)}, ["dominating"])
    for step, dominance in enumerate(values):
        row = replace(sound(), sigma_max=dominance, base_sigma_max=1.0)
        on = dominance > (limit * clear if on else limit)
        assert bool(watch.look(Snapshot(step, {"m": row}))) == on


def test_no_rule_is_asked_before_its_step_but_of_a_file_and_of_what_comes_last():
    broken = {"m": replace(sound(), untrained=True, kappa_B=None)}
    for step, last, spoken in ((9, False, False), (10, False, True), (9, True, True), (None, False, True)):
        found = Watch(names=["untrained"]).look(Snapshot(step, broken), last=last)
        assert [alert.step for alert in found] == ([step] if spoken else []), (step, last)


def test_the_window_ends_where_it_says():
    for window, spoken in ((29, False), (30, True)):
        watch = Watch({"collapsed_early": Thresholds({"warning": 0.5}, window=window)}, ["collapsed_early"])
        watch.look(Snapshot(10, {"m": replace(sound(), rank_utilization=0.9)}))
        assert bool(watch.look(Snapshot(30, {"m": replace(sound(), rank_utilization=0.4)}))) == spoken


def test_saturation_waits_until_its_window_is_full():
    watch = Watch(names=["saturated"])
    said = [bool(watch.look(Snapshot(step, {"m": sound()}))) for step in range(100, 1001, 100)]
    assert said == [False] * 5 + [True] * 5  # 600 is the first step that has one 500 steps before it


def test_saturated_says_over_how_many_steps_the_effective_rank_has_not_changed():
    watch = Watch(names=["saturated"])
    said = []
    for step, used in zip(range(100, 1301, 100), [0.2, 0.3, 0.4] + [0.5, 0.502] * 4 + [0.5, 0.6], strict=True):
        alerts = watch.look(Snapshot(step, {"m": replace(sound(), rank_utilization=used)}))
        said.append(alerts[0].message if alerts else None)
    assert said[:8] == [None] * 8
    assert said[8] == "m is saturated: it uses 50% of rank 4, which has changed by 0.4% over 500 steps"
    assert said[11] == "m is saturated: it uses 50% of rank 4, which has changed by 0.4% over 800 steps"
    assert said[12] is None, "it moves again"


def test_a_module_that_has_not_moved_is_said_to_since_when():
    watch = Watch(names=["never_moves"])
    for step in (10, 20, 30):
        watch.look(Snapshot(step, {"m": replace(sound(), frobenius_BA=float(step))}))
    said = [watch.look(Snapshot(step, {"m": replace(sound(), frobenius_BA=30.0)})) for step in (40, 50)]
    assert said[0] == []
    assert said[1][0].message == "m has not moved since step 30"
    assert said[1][0].value == 3


def test_what_is_untrained_says_which_part_is_zero():
    down, up = torch.ones(2, 5), torch.ones(4, 2)
    for module, zero in (
        (LoraModule(down, 0 * up), "B"),
        (LoraModule(down, up, 0.0), "its scale"),
        (LoraModule(0 * down, up), "BA"),
    ):
        rows = {row.module: row for row in module_metrics({"m": module})}
        (alert,) = Watch(names=["untrained"]).look(Snapshot(None, rows))
        assert alert.message == f"m changes nothing: {zero} is zero"


def own(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_of_ones_own_changes_what_it_names_alone(tmp_path):
    mine = read_thresholds(
        own(tmp_path, "dominating: {limits: {error: 1}, after: 5}\nquarter_of_nominal: {asked: true}")
    )
    shipped = read_thresholds()
    assert mine["dominating"] == replace(shipped["dominating"], limits={"error": 1}, after=5)
    assert mine["quarter_of_nominal"] == replace(shipped["quarter_of_nominal"], asked=True)
    assert {name for name in shipped if mine[name] != shipped[name]} == {"dominating", "quarter_of_nominal"}
    assert read_thresholds() == shipped
    row = replace(sound(), base_sigma_max=1.5 * sound().sigma_max, rank_utilization=0.1)
    (alert,) = Watch(mine).look(Snapshot(None, {"m": row}))
    assert alert.rule == "quarter_of_nominal"
    louder = replace(sound(), base_sigma_max=0.5 * sound().sigma_max)
    assert [one.limit for one in Watch(mine).look(Snapshot(None, {"m": louder}))] == [1.0]


def test_most_can_be_taken_away(tmp_path):
    assert read_thresholds()["untrained"].most == "error"
    assert read_thresholds(own(tmp_path, "untrained: {most: null}"))["untrained"].most is None
    assert read_thresholds(own(tmp_path, "untrained: {after: 3}"))["untrained"].most == "error"


def test_rules_that_a_mapping_lacks_have_the_thresholds_of_the_file():
    watch = Watch({"dominating": Thresholds({"note": 0.01})})
    found = watch.look(Snapshot(None, {"m": replace(sound(), finite=False)}))
    assert {alert.rule: alert.severity for alert in found} == {"not_finite": "error", "dominating": "note"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules with their limits are expected"),
        ("[1, 2]", "rules with their limits are expected"),
        ("just words", "rules with their limits are expected"),
        ("a: b: c", "no yaml"),
        ("dominating: {limits: {error: 0.4}", "no yaml"),
        (b"\x80\x81bad", "no yaml"),
        (b"\x00\x01\x02", "no yaml"),
        ("[" * 3000, "no yaml"),
        ("dominating: !!python/object:os.system {}", "no yaml"),
        ("dominating: 2026-13-45", "no yaml"),
        ("dominating: !!timestamp soon", "no yaml"),
        ("dominating: !!bool perhaps", "no yaml"),
        (f"dominating: {'9' * 5000}", "no yaml"),
        ("nonsense: {}", "nonsense is no rule. Rules are "),
        ("5: {}", "5 is no rule"),
        ("dominating:", "dominating takes limits, clear"),
        ("dominating: 0.4", "dominating takes limits, clear"),
        ("dominating: {limit: {error: 0.4}}", "dominating takes limits, clear"),
        ("dominating: {limits: 0.4}", "dominating.limits is 0.4"),
        ("dominating: {limits: [0.4]}", r"dominating.limits is \[0.4\]"),
        ("dominating: {limits: {}}", "limits and most are by severity"),
        ("dominating: {limits: {fatal: 0.4}}", "limits and most are by severity"),
        ("dominating: {limits: {1: 0.4}}", "limits and most are by severity"),
        ("dominating: {limits: {error: true}}", "limits finite numbers"),
        ("dominating: {limits: {error: '0.4'}}", "limits finite numbers"),
        ("dominating: {limits: {error: null}}", "limits finite numbers"),
        ("dominating: {limits: {error: .nan}}", "limits finite numbers"),
        ("dominating: {limits: {error: .inf}}", "limits finite numbers"),
        ("dominating: {limits: {error: -0.4}}", "limits finite numbers"),
        (f"dominating: {{limits: {{error: {'9' * 400}}}}}", "limits finite numbers"),
        ("dominating: {most: fatal}", "limits and most are by severity"),
        ("dominating: {most: 1}", "dominating.most is 1"),
        ("dominating: {clear: true}", "dominating.clear is True"),
        ("dominating: {clear: 0}", "dominating.clear is 0; a number above 0, at most 1"),
        ("dominating: {clear: -0.5}", "dominating.clear is -0.5; a number above 0, at most 1"),
        ("dominating: {clear: 1.01}", "dominating.clear is 1.01; a number above 0, at most 1"),
        ("dominating: {clear: .nan}", "dominating.clear is nan; a number above 0, at most 1"),
        ("dominating: {asked: 1}", "dominating.asked is 1"),
        ("dominating: {asked: 'yes'}", "dominating.asked is 'yes'"),
        ("dominating: {after: 1.5}", "dominating.after is 1.5"),
        ("dominating: {after: true}", "dominating.after is True"),
        ("dominating: {after: -1}", "dominating.after is -1"),
        ("dominating: {window: -1}", "dominating.window is -1"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own_is_said_in_a_line(tmp_path, text, message):
    path = own(tmp_path, text)
    with pytest.raises(LorabenchError, match=message) as error:
        read_thresholds(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 400


def test_a_file_that_is_not_there_or_no_file_is_said_to_be_so(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(LorabenchError, match="cannot be read"):
            read_thresholds(path)
