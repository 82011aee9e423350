"""Greedy search on a bundle with nothing of ours: numpy, and onnxruntime or openvino of any version.

    python plain_client.py onnxruntime|openvino FOLDER REQUEST.npz ANSWER.npz

The request holds ``input_ids`` and ``attention_mask`` [batch, source], ``steps`` and ``start``. The answer holds
``tokens`` [batch, steps], the ``logits`` of all steps [batch, steps, vocab], ``hidden`` [batch, source, d_model], and
the version.
"""

import sys

import numpy as np


def onnxruntime_graph(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    caches = {port.name: (port.shape, port.type) for port in session.get_inputs()}
    return caches, lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def openvino_graph(path):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}  # as the graph says
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    types = {"f16": "tensor(float16)", "f32": "tensor(float)", "i64": "tensor(int64)"}

    def shape(port):
        return [size.get_length() if size.is_static else None for size in port.partial_shape]

    caches = {port.any_name: (shape(port), types[port.element_type.get_type_name()]) for port in compiled.inputs}
    wanted = ("logits", "present.", "last_hidden_state")
    names = [next(name for name in port.names if name.startswith(wanted)) for port in compiled.outputs]

    def run(feeds):
        found = compiled(feeds)
        return {name: np.array(found[port]) for name, port in zip(names, compiled.outputs, strict=True)}

    return caches, run


def version(name):
    return __import__(name).__version__


def main(name, folder, request, answer):
    given = np.load(request)
    open_graph = {"onnxruntime": onnxruntime_graph, "openvino": openvino_graph}[name]
    _, encode = open_graph(folder + "/encoder.onnx")
    ports, step = open_graph(folder + "/decoder.onnx")
    ids, mask = given["input_ids"], given["attention_mask"]
    encoded = encode({"input_ids": ids, "attention_mask": mask})
    feeds = {key.replace("present", "past_key_values"): value for key, value in encoded.items() if "present" in key}
    for key, (shape, dtype) in ports.items():
        if key.endswith(("decoder.key", "decoder.value")):
            wide = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[dtype]
            feeds[key] = np.zeros((len(ids), shape[1], 0, shape[3]), wide)
    feeds["encoder_attention_mask"] = mask
    token, tokens, logits = np.full((len(ids), 1), given["start"], np.int64), [], []
    for _ in range(int(given["steps"])):
        found = step(dict(feeds, input_ids=token))
        feeds.update((key.replace("present", "past_key_values"), found[key]) for key in found if "present" in key)
        logits.append(found["logits"])
        token = found["logits"][:, -1:].argmax(axis=-1)
        tokens.append(token)
    np.savez(
        answer,
        tokens=np.concatenate(tokens, axis=1),
        logits=np.concatenate(logits, axis=1),
        hidden=encoded["last_hidden_state"],
        version=version(name),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
