"""All benchmarks of a machine without a GPU: python -m tests.bench."""

from tests.bench import (
    bench_ablation,
    bench_features,
    bench_inspect,
    bench_learned,
    bench_members,
    bench_merge,
    bench_monitor,
    bench_predict,
    bench_reading,
    bench_resize,
    bench_web,
)

for bench in (
    bench_features, bench_members, bench_ablation, bench_learned, bench_reading, bench_resize, bench_merge,
    bench_inspect, bench_monitor, bench_predict, bench_web,
):  # fmt: skip
    print(f"\n== {bench.__name__.rsplit('.', 1)[1]}")
    bench.main()
