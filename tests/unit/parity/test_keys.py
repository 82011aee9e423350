from __future__ import annotations

import pytest

from t5edge.exporter.graph.weight_expressions import DistanceTable, Exponents, Factors, Smoothed
from t5edge.kernels.weights import Source, StackedWeight, stack_of
from t5edge.parity.exact.keys import DistanceKey, StackKey, StoredKey, read_key

FACTORS = Factors(bytes(4))
PACKED = StackedWeight((Source("a.q.weight"), Source("a.k.weight", 0.25)), (4, 4), 4, transposed=True)
MARK = Exponents(FACTORS).key
SOURCES = (("a.q.weight", 1.0), ("a.k.weight", 0.25))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (stack_of("a.weight", (4,)).key, StackKey((("a.weight", 1.0),))),
        (PACKED.key, StackKey(SOURCES, transposed=True)),
        (Smoothed(PACKED, FACTORS).key, StackKey(SOURCES, True, MARK)),
        (Smoothed(PACKED, FACTORS, FACTORS).key, StackKey(SOURCES, True, MARK, MARK)),
        (Smoothed(PACKED, None, FACTORS).key, StackKey(SOURCES, True, "", MARK)),
        (DistanceTable("a.weight", (0, 1), 2, -32768.0).key, DistanceKey("a.weight", 2, masked=True)),
        (DistanceTable("a.weight", (0, 1), 2, None).key, DistanceKey("a.weight", 2, masked=False)),
    ],
)
def test_the_exporters_keys_are_read_back(name: str, expected: StackKey | DistanceKey) -> None:
    assert read_key(name) == StoredKey(expected, name)
    if isinstance(expected, StackKey):
        values = f"int4x32.float16.values({name})"
        assert read_key(values) == StoredKey(expected, values, "values", 4, 32)
        assert read_key(f"int4x32.float16.scales({name})") == StoredKey(expected, values, "scales", 4, 32)
        assert read_key(f"int8.values({name})") == StoredKey(expected, f"int8.values({name})", "values", 8)


def test_a_factor_that_is_no_number_is_no_key() -> None:
    assert read_key("a.weight*x") is None
    assert read_key("int8.values(T(a.weight*))") is None or read_key("T(a.weight*x)") is None
