"""Text to ids and back beside the C++ program, with a bundle's tokenizer.json; needs the tokenizers package only.

python ids.py encode BUNDLE < texts > sources
python ids.py decode BUNDLE < answers > texts
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("encode", "decode"):
        sys.exit(__doc__)
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[2]) / "tokenizer.json"))
    for line in sys.stdin:
        if sys.argv[1] == "encode":
            print(*tokenizer.encode(line.rstrip("\n")).ids)
        else:
            print(tokenizer.decode([int(word) for word in line.split()]))


if __name__ == "__main__":
    main()
