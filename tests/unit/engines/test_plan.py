from __future__ import annotations

from t5edge.bundle.engine_record import EngineAttention
from t5edge.engines.plan import Kernel, prove_attention, read_kernels

PLAN = b"""\x00\x01 binary function={ name=__myl_Gath fqn=__myl_Gath_0x1 args={ "a" } kernel_kind=1
  layers="[ONNX Layer: encoder/stem/Gather_0]" swap_ab=false }
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x2 args={ "b" } \
layers="[ONNX Layer: encoder.block.0.block/Attention_7]\
[ONNX Layer: encoder.block.0.block/Reshape_9]" swap_ab=false } \xff\xfe
  function={ name=__myl_Copy fqn=x args={ } swap_ab=false }"""


def test_kernels_are_read_with_their_nodes() -> None:
    nodes = ("encoder.block.0.block/Attention_7", "encoder.block.0.block/Reshape_9")
    assert read_kernels(PLAN) == (Kernel("__myl_Gath", ("encoder/stem/Gather_0",)), Kernel("_gemm_mha_v2", nodes))
    assert read_kernels(memoryview(PLAN)) == read_kernels(PLAN)


def test_an_attention_with_a_fused_kernel_is_proven() -> None:
    proof = prove_attention("fused", read_kernels(PLAN), ["encoder.block.0.block/Attention_7"], 1)
    assert proof.complete
    assert proof == EngineAttention("fused", expected=1, fused=1, decomposed=(), kernels={"_gemm_mha_v2": 1})


def test_an_attention_without_one_is_named() -> None:
    attentions = ["encoder.block.0.block/Attention_7", "encoder.block.1.block/Attention_20"]
    proof = prove_attention("fused", read_kernels(PLAN), attentions, 1)
    assert not proof.complete
    assert proof.decomposed == ("encoder.block.1.block/Attention_20",)


def test_every_profile_needs_its_kernel() -> None:
    proof = prove_attention("fused", read_kernels(PLAN), ["encoder.block.0.block/Attention_7"], 2)
    assert (proof.expected, proof.fused, proof.complete) == (2, 1, False)


def test_a_plan_without_text_proves_nothing() -> None:
    proof = prove_attention("fused", read_kernels(b"\x00" * 64), ["encoder.block.0.block/Attention_7"], 1)
    assert proof.fused is None
    assert not proof.complete


def test_a_plan_that_names_no_kernels_shows_nothing() -> None:
    proof = prove_attention("fused", read_kernels(b"no program text"), ["encoder.block.0.block/Attention_7"], 2)
    assert (proof.expected, proof.fused, proof.complete) == (2, None, False)
