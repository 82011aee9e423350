"""Sessions of the CPU get the configuration that the bundle was verified with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.bundles import Workshop
from t5edge.bundle.manifest import Manifest
from t5edge.runtime.onnxruntime import cpu as target
from t5edge.runtime.onnxruntime.sessions import CONFIGURATION

BLOCK = "session.qdq_matmulnbits_block_size"
GRAPHS = ("encoder", "decoder")


def test_the_manifest_holds_the_configuration_and_rules(demo: Workshop) -> None:
    folder = demo.bundle("fp32")
    manifest = Manifest.read(folder)
    assert manifest.session == CONFIGURATION
    chosen = {"encoder": {"session.force_spinning_stop": "0", BLOCK: "16"}, "decoder": {BLOCK: "64"}}
    for session in (manifest.session, chosen):
        model = target.open(folder, replace(manifest, session=session), threads=1)
        for graph in GRAPHS:
            options = getattr(model, graph).get_session_options()
            assert {key: options.get_session_config_entry(key) for key in session[graph]} == session[graph]
            assert options.intra_op_num_threads == 1


def test_bundles_from_before_it_was_recorded_per_graph_open(demo: Workshop) -> None:
    folder: Path = demo.bundle("fp32")
    manifest = {key: value for key, value in Manifest.read(folder).to_dict().items() if key != "session"}
    for recorded, expected in (({}, "128"), ({"session": {BLOCK: "32"}}, "32")):
        options = target.open(folder, Manifest.from_dict({**manifest, **recorded})).decoder.get_session_options()
        assert options.get_session_config_entry(BLOCK) == expected
