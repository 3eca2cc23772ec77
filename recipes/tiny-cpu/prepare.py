"""Write real text that every installation has, and a tokenizer trained on it: what the recipes of this folder use.

    python recipes/tiny-cpu/prepare.py tiny

`prose` are the documentation strings of the installed Python packages, `code` is the rest of their source. One file in
four is held out. The same installation gives the same files.
"""

import argparse
import json
from pathlib import Path

from hf_warmscale.checkpoints import staged_directory
from hf_warmscale.quickstart.data import train_tokenizer
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.quickstart.text import DOMAINS, installed_documents

BYTES = 2_000_000
HELD_OUT = 120
"""Documents of each domain: enough to judge a merge, few enough for a minute."""


def main() -> None:
    """Collect the text, train the tokenizer, write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="a new folder")
    output = parser.parse_args().output
    documents = installed_documents(dict.fromkeys(DOMAINS, BYTES))
    splits = {
        f"{domain}{suffix}": [document.text for document in documents[domain] if document.split in kept][:most]
        for domain in DOMAINS
        for suffix, kept, most in (
            ("", ("train", "more"), None),
            ("-held-out", ("evaluation", "select", "confirm"), HELD_OUT),
        )
    }
    with staged_directory(output) as folder:
        for name, texts in splits.items():
            (folder / f"{name}.jsonl").write_text(
                "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
            )
        training = [text for domain in DOMAINS for text in splits[domain]]
        train_tokenizer(training, Settings()).save_pretrained(folder / "tokenizer")
    print(f"Written: {Path(output)}: " + ", ".join(f"{len(texts)} {name}" for name, texts in splits.items()))


if __name__ == "__main__":
    main()
