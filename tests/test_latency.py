"""Budgets of latency. Times come from a made-up machine, so that nothing depends on this one's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph.api import Ready, ready
from spa_graph.errors import BudgetError, OptionError
from spa_graph.passes import pipeline
from spa_graph.passes.allocate import (
    Budget,
    Limits,
    allocate_by_distortion,
    importance_curves,
)
from spa_graph.passes.importance.magnitude import L1
from spa_graph.passes.latency import Conditions, Found, within_latency
from spa_graph.passes.latency.cache import Measurements, cached, keep
from spa_graph.passes.latency.design import UNITS, designs, fastest_unit, unit_designs
from spa_graph.passes.latency.laboratory import Observation
from spa_graph.passes.latency.model import LatencyModel
from spa_graph.passes.latency.search import TOLERANCE, Laboratories
from spa_graph.passes.options import Options, Timer, milliseconds_or_ratio
from spa_graph.passes.pipeline import Ranking
from spa_graph.runtime.benchmark.profile import NodeTime
from spa_graph.studies.sweep import sweep
from tests.conftest import Command, assert_refused, listing
from tests.models import CHAIN, network

WIDE = """
wide (float[N,32] x) => (float[N,5] y)
<float[32,128] w1, float[128,96] w2, float[96,64] w3, float[64,5] w4>
{
    a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c)
    e = MatMul(d, w3) f = Relu(e) y = MatMul(f, w4)
}
"""
SIZES = (128, 96, 64)
Counts = np.ndarray[Any, np.dtype[np.int64]]


def up(size: int, width: int) -> int:
    return -(-size // width) * width


class Machine:
    """Runs WIDE at a known speed: matrix products work on `width` columns and rows at once.

    The weights of its matrix products are hidden, as ONNX Runtime hides those that it repacks.

    Args:
        odd: how many times as long products take whose sizes aren't multiples of 16.
        bias: how much longer a network takes that was not designed, but chosen.
    """

    def __init__(self, width: int = 8, odd: float = 1.0, bias: float = 1.0) -> None:
        self.width, self.odd, self.bias = width, odd, bias
        self.conditions = Conditions({"x": np.zeros((1, 32), np.float32)})
        self.original_ms = self.ms(np.array(SIZES))
        self.observed: list[Counts] = []

    def nodes(self, counts: Counts) -> list[NodeTime]:
        sizes = [32, *counts.tolist(), 5]
        found = []
        for number in range(4):
            rows, columns = sizes[number], sizes[number + 1]
            ms = 0.01 + 1e-4 * up(rows, self.width) * up(columns, self.width)
            if any(size % 16 for size in counts.tolist()):
                ms *= self.odd
            tensors = ((1, rows),), ((1, columns),)
            found.append(NodeTime(f"product{number}", "MatMul", ms, *tensors))
            if number < 3:
                relu = NodeTime(f"relu{number}", "Relu", 1e-4 * columns, tensors[1], tensors[1])
                found.append(relu)
        return found

    def ms(self, counts: Counts) -> float:
        return sum(node.ms for node in self.nodes(counts))

    def observe(
        self, candidates: Sequence[Counts], progress: object = None, seconds: float = 0.0
    ) -> list[Observation]:
        del progress, seconds
        self.observed += candidates
        bias = self.bias if len(candidates) == 1 else 1.0
        return [Observation(c, bias * self.ms(c), self.nodes(c)) for c in candidates]

    def kept(self, counts: Counts) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.concatenate(
            [np.arange(size) < count for size, count in zip(SIZES, counts.tolist(), strict=True)]
        )


def fitted(machine: Machine, unit: int = 1) -> LatencyModel:
    analysis = spa_graph.analyze(network(WIDE))
    whole = np.zeros(3, bool)
    candidates = designs(analysis.groups, whole, Limits(aligned=unit, finest=unit))
    return LatencyModel(analysis.coupling, machine.observe(candidates))


def search(machine: Laboratories, **options: Any) -> tuple[Found, Ready]:
    with ready(network(WIDE), **options) as prepared:
        return within_latency(prepared.ranking, Options(**options), Timer(), machine), prepared


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is found in the user's cache, and nothing left there."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(folder / name))
    return folder


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 8, 16])
def test_the_staircase_is_found_from_times_and_sizes_alone(width: int) -> None:
    machine = Machine(width)
    model = fitted(machine)
    generator = np.random.default_rng(3)
    for _ in range(20):
        counts = generator.integers(1, np.array(SIZES) + 1)
        assert float(model.milliseconds(counts)) == pytest.approx(machine.ms(counts), rel=0.02)


def test_times_of_many_candidates_are_those_of_each() -> None:
    model = fitted(Machine())
    counts = np.array([[128, 96, 64], [40, 31, 7], [1, 1, 1]]).T
    each = [float(model.milliseconds(own)) for own in counts.T]
    assert model.costs("latency", counts) == pytest.approx(each)
    assert model.ratio("latency", counts[:, 0]) == 1


def test_time_never_falls_where_channels_are_added() -> None:
    model = fitted(Machine(16))
    for group in range(3):
        counts = np.tile(np.array([[64], [48], [32]]), 60)
        counts[group] = np.arange(1, 61)
        assert (np.diff(model.costs("latency", counts)) >= -1e-12).all()


def test_a_node_that_only_some_candidates_have_counts_on_average() -> None:
    analysis = spa_graph.analyze(network(WIDE))
    machine = Machine(1)
    observations = machine.observe(designs(analysis.groups, np.zeros(3, bool), Limits(round_to=1)))
    extra = NodeTime("reorder", "ReorderOutput", 1.0, ((1, 5),), ((1, 5),))
    for each in observations[::2]:
        each.nodes.append(extra)
    observations = [
        Observation(o.counts, sum(node.ms for node in o.nodes), o.nodes) for o in observations
    ]
    model = LatencyModel(analysis.coupling, observations)
    assert 0 < float(model.milliseconds(np.array([1, 1, 1]))) < 1.2


@pytest.mark.parametrize("compiled", ["numbered anew", "always the same", "not profiled"])
def test_of_a_network_that_is_compiled_as_a_whole_the_file_says_what_takes_time(
    compiled: str,
) -> None:
    """As OpenVINO runs it: one node that says nothing, or none."""

    class Compiler(Machine):
        def observe(self, candidates: Sequence[Counts], *more: Any, **options: Any) -> Any:
            found = []
            for number, each in enumerate(super().observe(candidates, *more, **options)):
                name = f"part{number}" if compiled == "numbered anew" else "part"
                whole = NodeTime(name, "Compiled", each.ms, (), ())
                nodes = [] if compiled == "not profiled" else [whole]
                found.append(Observation(each.counts, each.ms, nodes))
            return found

    machine = Compiler(width=1)
    model = fitted(machine)
    counts = np.random.default_rng(3).integers(1, np.array(SIZES) + 1, (20, 3))
    measured = [machine.ms(own) for own in counts]
    assert model.milliseconds(counts.T) == pytest.approx(measured, rel=0.05)
    found, _ = search(Compiler(width=1), latency=0.5)
    assert found.close


# --- candidates -----------------------------------------------------------------------------------


def test_candidates_lie_on_the_grid_and_between_least_and_full() -> None:
    groups = spa_graph.analyze(network(WIDE)).groups
    found = designs(groups, np.array([False, True, False]), Limits(aligned=16, finest=16))
    assert found[0].tolist() == list(SIZES)
    assert found[1].tolist() == [16, 96, 16]  # what is out of scope stays
    assert all((counts % 16 == 0).all() and (counts >= 16).all() for counts in found)
    assert len({tuple(counts.tolist()) for counts in found}) > 12
    kept_whole = [counts[1] == 96 for counts in found[2:]]
    assert any(kept_whole) and not all(kept_whole)
    again = designs(groups, np.array([False, True, False]), Limits(aligned=16, finest=16))
    assert all(np.array_equal(*pair) for pair in zip(found, again, strict=True))


def test_the_unit_is_the_finest_that_is_about_as_fast_as_any() -> None:
    groups = spa_graph.analyze(network(WIDE)).groups
    found = unit_designs(groups, np.zeros(3, bool))
    assert list(found) == list(UNITS)
    assert all((c % unit == 0).all() for unit, own in found.items() for c in own)
    assert fastest_unit({1: [4.0, 6.0], 8: [3.0, 4.0], 16: [2.0, 3.0], 32: [2.0, 2.9]}) == 16
    assert fastest_unit({1: [2.0], 8: [2.0], 16: [1.99], 32: [1.98]}) == 1


# --- allocation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_allocator_stops_where_time_steps_down(ratio: float) -> None:
    analysis = spa_graph.analyze(network(WIDE))
    model = fitted(Machine(8))
    scores = np.random.default_rng(0).uniform(0.5, 1, analysis.coupling.count)
    curves = importance_curves(analysis.coupling, scores)
    none = np.zeros(3, bool)
    kept = allocate_by_distortion(
        analysis.coupling, model, scores, curves, Budget("latency", ratio), Limits(round_to=1), none
    )
    counts = np.array([kept[g.start : g.stop].sum() for g in analysis.groups])
    assert model.ratio("latency", counts) <= ratio
    assert sum(count % 8 == 0 for count in counts) >= 2, counts  # one may fill up what is left


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_no_other_counts_keep_more_within_the_budget(ratio: float) -> None:
    """Compared with every network on the grid."""
    analysis = spa_graph.analyze(network(WIDE))
    model = fitted(Machine(8), 8)
    scores = np.random.default_rng(1).exponential(1, analysis.coupling.count)
    curves = importance_curves(analysis.coupling, scores)
    limits = Limits(aligned=8, finest=8)
    kept = allocate_by_distortion(
        analysis.coupling, model, scores, curves, Budget("latency", ratio), limits,
        np.zeros(3, bool),
    )  # fmt: skip
    axes = [np.arange(8, size + 1, 8) for size in SIZES]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    within = grid[:, model.costs("latency", grid) <= ratio * model.whole_ms]
    lost = sum(curve[len(curve) - 1 - own] for curve, own in zip(curves, within, strict=True))
    own = scores[~kept].sum()
    assert own <= 1.05 * lost.min()


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.3, 0.5, 0.8])
def test_the_measured_latency_is_close_to_the_budget(latency: float) -> None:
    machine = Machine(width=1)
    found, _ = search(machine, latency=latency)
    assert found.wanted == pytest.approx(latency * machine.original_ms)
    assert found.close
    assert machine.ms(found.chosen.counts) == found.chosen.measured
    assert found.chosen.predicted == pytest.approx(found.chosen.measured, rel=0.05)


def test_a_wrong_model_is_corrected_by_what_is_measured() -> None:
    found, _ = search(Machine(width=1, bias=1.3), latency=0.5)
    assert len(found.trials) > 1
    assert abs(found.trials[0].measured / found.wanted - 1) > TOLERANCE
    assert found.close


@pytest.mark.parametrize("latency", [0.3, 0.5, 0.8])
def test_where_no_network_is_close_the_slowest_that_was_found_within_is_taken(
    latency: float,
) -> None:
    machine = Machine(width=32)
    found, _ = search(machine, latency=latency, round_to=32)
    assert found.chosen.measured <= (1 + TOLERANCE) * found.wanted
    assert found.chosen.measured == max(
        trial.measured for trial in found.trials if trial.measured <= (1 + TOLERANCE) * found.wanted
    )
    assert found.plain()["within_5_percent"] == found.close


def test_no_budget_of_flops_keeps_more_in_the_same_time() -> None:
    class Misleading(Machine):
        """Designed candidates take other times than those that are chosen: the model is wrong."""

        def observe(self, candidates: Sequence[Counts], *rest: Any, **named: Any) -> Any:
            found = super().observe(candidates, *rest, **named)
            if len(candidates) == 1:
                return found
            return [replace(each, nodes=[*map(otherwise, each.nodes)]) for each in found]

    def otherwise(node: NodeTime) -> NodeTime:
        wrong = {"product0": 5.0, "product1": 0.1, "product2": 5.0}
        return replace(node, ms=node.ms * wrong.get(node.name, 1.0))

    machine = Misleading()
    found, prepared = search(machine, latency=0.5)
    assert found.plain()["chosen_by"] == "flops"
    curves = importance_curves(prepared.analysis.coupling, prepared.ranking.scores)

    def lost(counts: Counts) -> float:
        return sum(float(c[len(c) - 1 - n]) for c, n in zip(curves, counts, strict=True))

    for flops in np.linspace(0.1, 0.95, 30).tolist():
        rows = prepared.prune(flops=flops, verify=False).report["groups"]
        counts = np.array([row["kept"] for row in rows])
        if machine.ms(counts) <= found.wanted:
            assert lost(found.chosen.counts) <= 1.02 * lost(counts)


def test_counts_off_the_grid_are_for_budgets_that_need_them() -> None:
    found, _ = search(Machine(width=1, odd=1.2), latency=0.04)
    assert found.unit == 16 and found.chosen.by == "flops"
    assert found.chosen.measured <= (1 + TOLERANCE) * found.wanted
    assert (found.chosen.counts % 16 != 0).any()


def test_a_criterion_in_rounds_goes_through_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    score, scored = pipeline._score, []

    def counted(ranking: Ranking, kept: Any, options: Options, timer: Timer) -> Ranking:
        scored.append(int(kept.sum()))
        return score(ranking, kept, options, timer)

    monkeypatch.setattr(L1, "rounds", 4)
    monkeypatch.setattr(pipeline, "_score", counted)
    found, _ = search(Machine(width=1, bias=1.3), latency=0.5, criterion="l1")
    assert len(found.trials) > 1
    assert len(scored) == 4 and scored == sorted(scored, reverse=True)


def test_counts_of_a_slow_kind_are_avoided() -> None:
    found, _ = search(Machine(width=1, odd=3.0), latency=0.5)
    assert found.unit == 16
    assert (found.chosen.counts % 16 == 0).all()
    chosen, _ = search(Machine(width=1, odd=3.0), latency=0.5, round_to=32)
    assert chosen.unit == 32
    assert (chosen.chosen.counts % 32 == 0).all()


def test_measured_candidates_are_kept_for_the_next_time(cache: Path) -> None:
    first, second, third = Machine(), Machine(), Machine()
    found, _ = search(first, latency=0.5)
    assert not found.from_cache
    assert len(list(cache.rglob("*.json"))) == 1
    again, _ = search(second, latency=0.4)
    assert again.from_cache
    assert all(len(second.observed) < len(UNITS) for _ in second.observed)
    third.conditions = Conditions(third.conditions.feeds, threads=3)
    other, _ = search(third, latency=0.4)
    assert not other.from_cache
    assert len(list(cache.rglob("*.json"))) == 2


def test_a_broken_cache_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.json"
    assert cached(path) is None
    node = NodeTime("n", "MatMul", 0.5, ((1, 2), (2, 3)), ((1, 3),))
    keep(path, Measurements(8, 2.0, [Observation(np.array([1, 2]), 1.5, [node])]))
    read = cached(path)
    assert read is not None
    assert (read.unit, read.original_ms, read.observations[0].ms) == (8, 2.0, 1.5)
    assert read.observations[0].nodes == [node]
    assert read.observations[0].counts.tolist() == [1, 2]
    path.write_text('{"unit": 8}')
    assert cached(path) is None
    path.write_text("{")
    assert cached(path) is None


def test_a_machine_that_is_faster_today_changes_nothing(cache: Path) -> None:
    found, _ = search(Machine(), latency=0.5)

    class Faster(Machine):
        def ms(self, counts: Counts) -> float:
            return super().ms(counts) / 2

    again, _ = search(Faster(), latency=0.5)
    assert again.from_cache
    assert again.chosen.counts.tolist() == found.chosen.counts.tolist()
    assert cache.exists()


def test_what_can_be_reached_is_said_where_the_budget_can_not() -> None:
    machine = Machine()
    with pytest.raises(BudgetError, match=r"latency 0\.01 can't be reached.* takes .* ms \(0\.\d"):
        search(machine, latency=0.01)
    with pytest.raises(BudgetError, match=r"takes .* already, less than --latency 5s"):
        search(machine, latency="5s")


def test_a_time_is_a_budget_too() -> None:
    machine = Machine()
    found, _ = search(machine, latency=f"{1e3 * machine.original_ms / 2:.1f}us")
    assert found.wanted == pytest.approx(machine.original_ms / 2, rel=1e-3)
    assert found.close


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12ms", (12, None)), ("800us", (0.8, None)), ("0.1s", (100, None)), ("0.5", (None, 0.5)),
     (" 1.5 ms", (1.5, None)), (".25", (None, 0.25))],
)  # fmt: skip
def test_latencies_are_read(text: str, expected: tuple[float | None, float | None]) -> None:
    assert milliseconds_or_ratio(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "0", "1", "1.5", "fast", "0ms", "-3ms", "12min", "12 m s"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"give a share such as 0\.5, or a time such as 12ms"):
        spa_graph.prune(network(CHAIN), latency=text)


# --- a sweep --------------------------------------------------------------------------------------


def test_a_sweep_over_latencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa_graph.passes.latency.Laboratory", lambda *_: Machine(width=1))
    model, output = tmp_path / "wide.onnx", tmp_path / "out"
    onnx.save(network(WIDE), model)
    given: dict[str, Any] = {
        "output": output,
        "criteria": ("l1",),
        "calibrate": {"x": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)},
    }
    found = sweep(model, (0.8, 0.5), quantity="latency", **given)
    assert found["cost"] == "latency"
    assert [(point["quantity"], point["asked"]) for point in found["points"]] == [
        ("latency", 0.8),
        ("latency", 0.5),
    ]
    for point in found["points"]:
        assert point["time"] == pytest.approx(point["asked"], rel=TOLERANCE)
        assert point["ms"] == pytest.approx(point["time"] * Machine(width=1).original_ms)
    before = listing(output)
    found = sweep(model, (0.8, 0.65, 0.5), quantity="latency", **given)
    assert [point["asked"] for point in found["points"]] == [0.8, 0.65, 0.5]
    after = listing(output)
    assert {name: after[name] for name in before if name != "sweep.csv"} == {
        name: state for name, state in before.items() if name != "sweep.csv"
    }
    assert "l1,latency,0.65" in (output / "sweep.csv").read_text()

    found = sweep(model, (0.5,), latency_seconds=0.05, **given)  # by FLOPs, for comparison
    assert found["cost"] == "latency"
    assert all(point["time"] > 0 for point in found["points"])
    pytest.importorskip("matplotlib")
    from spa_graph.pictures.sweep import sweep_figure

    axes = sweep_figure(found).axes[0]
    assert axes.get_xlabel() == "latency left"
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["l1, by FLOPs", "l1, by latency", "Pareto frontier"]


# --- a real run: that it works, not how fast ------------------------------------------------------


def test_a_real_run(process: Command, chain: Path) -> None:
    ran = process(
        "chain.onnx", "--latency", 0.9, "--threads", 1, "--batch", 2, "--round-to", 2,
        "--report", "r.json", "--latency-seconds", 0.1,
    )  # fmt: skip
    if ran.code == 2:  # a machine on which no smaller network is a tenth faster
        assert "latency 0.9 can't be reached: the fastest network" in ran.err
        return
    assert ran.code == 0, ran.err
    report = json.loads(chain.with_name("r.json").read_text())
    found = report["latency_budget"]
    assert found["budget_ms"] == pytest.approx(0.9 * found["original_ms"])
    assert found["measured_ms"] <= 1.05 * found["budget_ms"]
    assert (found["provider"], found["threads"], found["unit"]) == ("CPUExecutionProvider", 1, 2)
    assert len(found["trials"]) >= 1
    assert all(group["kept"] % 2 == 0 for group in report["groups"])
    assert report["verification"]["error"] <= report["verification"]["tolerated"]
    assert "latency budget" in ran.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--latency", "soon"), "--latency soon: give a share such as 0.5"),
        (("--latency", "5"), "or a time such as 12ms; 5 milliseconds are 5ms"),
        (("--latency", "0.5", "--provider", "toaster"), "--provider toaster"),
        (("--latency", "0.5", "--flops", "0.5"), "give one budget, not --flops and --latency"),
        (("--latency", "1h"), "--latency 1h"),
        (("--memory", "1.5"), "--memory must lie between 0 and 1"),
        (("--latency", "0.0001", "--latency-seconds", 0), "can't be reached: the fastest network"),
    ],
)
def test_what_can_not_be_done_is_refused(
    process: Command, chain: Path, options: tuple[object, ...], says: str
) -> None:
    assert_refused(process, chain.parent, "chain.onnx", *options, says=says)


def test_provider_and_batch_are_checked_before_measuring() -> None:
    fixed = network(CHAIN.replace("float[N,3,8,8]", "float[1,3,8,8]"))
    with pytest.raises(OptionError, match="fixed batch"):
        spa_graph.prune(fixed, latency=0.5, batch=4)


# --- memory ---------------------------------------------------------------------------------------


def chain_memory(first: int, second: int) -> int:
    """Bytes of CHAIN, by hand: weights, and the worst moment between its operators.

    The input, 3 x 64 numbers, is always there; the output is only when all else is gone.
    """
    weights = 9 * (3 * first + first * second) + first + second + second * 5
    pairs = [
        64 * first,
        64 * 2 * first,
        64 * (first + second),
        64 * 2 * second,
        64 * second + second,
    ]
    return 4 * (weights + 3 * 64 + max(pairs))


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_memory_is_a_budget(ratio: float) -> None:
    result = spa_graph.prune(network(CHAIN), memory=ratio, round_to=1)
    first, second = (group["kept"] for group in result.report["groups"])
    limit = ratio * chain_memory(8, 12)
    assert chain_memory(first, second) <= limit
    assert first == 8 or chain_memory(first + 1, second) > limit
    assert second == 12 or chain_memory(first, second + 1) > limit
    assert result.report["before"]["memory"] == chain_memory(8, 12)
    assert result.report["after"]["memory"] == chain_memory(first, second)


def test_what_is_only_seen_otherwise_takes_no_memory_of_its_own() -> None:
    plain = "net (float[4,6] x) => (float[4,3] y) <float[6,8] w, float[8,3] v>"
    text = plain + "{ a = MatMul(x, w) b = Identity(a) y = MatMul(b, v) }"
    cost = spa_graph.analyze(network(text)).cost
    numbers = 4 * 6 + 4 * 3 + 4 * 8 + 6 * 8 + 8 * 3
    assert cost.cost("memory", cost.full) == 4 * numbers
