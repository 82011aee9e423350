"""Ports: shapes, engine profiles and inputs all follow from one description."""

from __future__ import annotations

import json

from t5edge.bundle.ports import GraphPorts, Limits, Port, decoder_ports, encoder_ports, in_place_ports
from t5edge.bundle.schema import plain, read_as

HEADS, D_KV, D_MODEL, VOCABULARY, LAYERS = 3, 5, 16, 97, 2
SIZES = {"batch": 2, "source": 7, "target": 4, "past": 3}


def decoder() -> GraphPorts:
    return decoder_ports(LAYERS, HEADS, D_KV, VOCABULARY, "float16")


def test_axes_become_sizes_and_sums_are_computed() -> None:
    ports = {port.name: port for port in (*decoder().inputs, *decoder().outputs)}
    assert ports["logits"].shape(SIZES) == (2, 4, VOCABULARY)
    assert ports["past_key_values.1.decoder.key"].shape(SIZES) == (2, HEADS, 3, D_KV)
    assert ports["past_key_values.1.encoder.value"].shape(SIZES) == (2, HEADS, 7, D_KV)
    assert ports["present.0.decoder.value"].shape(SIZES) == (2, HEADS, 7, D_KV)


def test_what_the_encoder_gives_is_what_the_decoder_takes() -> None:
    given = encoder_ports(LAYERS, HEADS, D_KV, D_MODEL, "float16").outputs[1:]
    taken = [port for port in decoder().inputs if ".encoder." in port.name]
    assert [port.name.replace("present", "past_key_values") for port in given] == [port.name for port in taken]
    assert [(port.dtype, port.axes) for port in given] == [(port.dtype, port.axes) for port in taken]
    assert len(given) == 2 * LAYERS


def test_ports_survive_the_manifest() -> None:
    problems: list[str] = []
    assert read_as(GraphPorts, json.loads(json.dumps(plain(decoder()))), "ports", problems) == decoder()
    assert problems == []
    assert decoder().axis_names() == ("batch", "target", "source", "past")


def test_an_engine_profile_reaches_from_an_empty_cache_to_the_limits() -> None:
    cache = next(port for port in decoder().inputs if port.name.endswith("decoder.key"))
    shapes = Limits(max_batch=6, max_source_length=20, max_target_length=9).profile(cache)
    assert shapes == ((1, HEADS, 0, D_KV), (1, HEADS, 9, D_KV), (6, HEADS, 9, D_KV))
    assert Limits().profile(Port("input_ids", "int64", ("batch", "source"))) == ((1, 1), (1, 64), (8, 512))


def test_a_cache_written_in_place_has_one_size_in_and_out() -> None:
    ports = in_place_ports(decoder(), 144)
    caches = [port for port in (*ports.inputs, *ports.outputs) if ".decoder." in port.name]
    assert {port.axes for port in caches} == {("batch", HEADS, 144, D_KV)}
    assert len(caches) == 4 * LAYERS
    assert ports.inputs[2] == Port("past_length", "int64", (1,))
    assert in_place_ports(decoder(), "capacity").inputs[2] == Port("past_length", "int64", ("batch",))
    assert [port for port in ports.inputs if ".encoder." in port.name] == [
        port for port in decoder().inputs if ".encoder." in port.name
    ]
