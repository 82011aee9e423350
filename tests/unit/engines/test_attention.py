from __future__ import annotations

import pytest

from t5edge.engines.attention import attention_form


@pytest.mark.parametrize("d_kv", [16, 24, 32, 64, 128, 256])
@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_16_bit_attention_must_be_fused(compute: str, d_kv: int) -> None:
    assert attention_form(compute, d_kv, no_fuse=False) == "fused"


@pytest.mark.parametrize(("compute", "d_kv"), [("float", 64), ("float16", 8), ("float16", 12), ("bfloat16", 512)])
def test_where_no_fused_kernel_exists_it_may_be_split(compute: str, d_kv: int) -> None:
    assert attention_form(compute, d_kv, no_fuse=False) == "decomposable"


@pytest.mark.parametrize("compute", ["float", "float16", "bfloat16"])
def test_no_fuse_wins(compute: str) -> None:
    assert attention_form(compute, 64, no_fuse=True) == "split"
