from __future__ import annotations

from typing import Any

import pytest

from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT
from t5edge.runtime.tensorrt.log import builder_error, make_log, parser_error, place_of, shorten


class FakeModule:
    __version__ = "11.2.0"


TOOL = TensorRT(FLAVORS["tensorrt"], FakeModule)


class FakeError:
    def __init__(self, node: str, operator: str, text: str) -> None:
        self._node, self._operator, self._text = node, operator, text

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._text


class FakeParser:
    def __init__(self, *errors: FakeError) -> None:
        self.errors, self.num_errors = errors, len(errors)

    def get_error(self, index: int) -> FakeError:
        return self.errors[index]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "Cannot compile operation 'decoder.block.3.block/Attention_57' for Turing",
            "node 'decoder.block.3.block/Attention_57' (Attention, decoder layer 3)",
        ),
        ("encoder/stem/Gather_0:0 differs", "node 'encoder/stem/Gather_0' (Gather, encoder stem)"),
        (
            "at decoder.block.1.cross_kv/MatMul_90",
            "node 'decoder.block.1.cross_kv/MatMul_90' (MatMul, cross-attention keys and values of decoder layer 1)",
        ),
        ("out of memory", ""),
    ],
)
def test_a_node_is_named_with_its_layer(text: str, place: str) -> None:
    assert place_of(text) == place


def test_a_parser_error_names_the_node_the_layer_and_a_way_out() -> None:
    parser = FakeParser(
        FakeError("", "", "general failure"),
        FakeError("decoder.block.3.block/Attention_57", "Attention", "No importer registered\n for op: Attention"),
    )
    assert str(parser_error(TOOL, "decoder.onnx", parser)) == (
        "tensorrt 11.2.0 cannot read decoder.onnx: node 'decoder.block.3.block/Attention_57' (Attention, decoder "
        "layer 3): No importer registered for op: Attention (1 more errors). A newer tensorrt may know it; "
        "--target onnxruntime runs the bundle as it is."
    )


def test_a_parser_without_errors_still_gives_a_sentence() -> None:
    assert "does not say why" in str(parser_error(TOOL, "decoder.onnx", FakeParser()))


def test_a_builder_error_quotes_the_line_that_names_a_node() -> None:
    errors = [
        "Error Code 10: could not find any implementation",
        "Error Code 1: Myelin ([pass.cpp:337] Cannot compile operation 'encoder.block.0.block/MatMul_17' "
        "In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
    ]
    text = str(builder_error(TOOL, "encoder.onnx", "7.5", errors))
    assert "for compute capability 7.5 at node 'encoder.block.0.block/MatMul_17' (MatMul, encoder layer 0)" in text
    assert "/_src/" not in text
    assert "\n" not in text


def test_long_texts_are_cut() -> None:
    assert len(shorten("x " * 1000)) == 400


def test_the_log_keeps_errors_and_warnings_and_prints_nothing(rtx: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log, severity = make_log(rtx), rtx.trt.ILogger.Severity
    for level in (severity.ERROR, severity.WARNING, severity.INFO, severity.VERBOSE):
        log.log(level, f"said at {level.name}")
    assert (log.errors, log.warnings) == (["said at ERROR"], ["said at WARNING"])
    assert capsys.readouterr() == ("", "")
