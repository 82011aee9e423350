"""optimum's client in its own environment: one JSON request in, generated token ids out.

PEER_PYTHON optimum_client.py FOLDER
{"input_ids": [[...]], "attention_mask": [[...]], "beams": [1, 4], "new_tokens": 64, "merged": [null, false, true]}
-> one JSON line: {"answers": [{"merged": ..., "beams": 1, "files": [...], "tokens": [[...]]}, ...]}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    request = json.load(sys.stdin)
    inputs = {name: torch.tensor(request[name]) for name in ("input_ids", "attention_mask")}
    answers = []
    for merged in request["merged"]:
        settings = {} if merged is None else {"use_merged": merged}
        model = ORTModelForSeq2SeqLM.from_pretrained(sys.argv[1], local_files_only=True, **settings)
        parts = [part for part in (model.encoder, model.decoder, model.decoder_with_past) if part is not None]
        files = [Path(part.session._model_path).name for part in parts]
        for beams in request["beams"]:
            tokens = model.generate(**inputs, num_beams=beams, do_sample=False, max_new_tokens=request["new_tokens"])
            answers.append({"merged": merged, "beams": beams, "files": files, "tokens": tokens.tolist()})
    print(json.dumps({"answers": answers}))


if __name__ == "__main__":
    main()
