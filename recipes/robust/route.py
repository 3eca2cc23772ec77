"""Answer each prompt with the adapter on or off, whichever a small model of the new domain agrees with more.

python recipes/robust/route.py BASE ADAPTER --reference SMALL --prompt TEXT [--prompt TEXT ...]
"""

import argparse

from peft import PeftModel

from hf_warmscale import UncertaintyRouter
from hf_warmscale.checkpoints import load_model, load_tokenizer


def main() -> None:
    """Parse the arguments, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the large model: a folder or a Hub id")
    parser.add_argument("adapter", help="the folder of its adapter")
    parser.add_argument("--reference", required=True, help="the small model of the new domain")
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.base)
    model = PeftModel.from_pretrained(load_model(arguments.base), arguments.adapter)
    router = UncertaintyRouter(model, reference=load_model(arguments.reference))
    for prompt in arguments.prompt:
        inputs = tokenizer(prompt, return_tensors="pt")
        chosen = "on" if bool(router.route(inputs["input_ids"])) else "off"
        tokens = router.generate(inputs["input_ids"], max_new_tokens=arguments.max_new_tokens)
        print(f"[adapter {chosen}] {tokenizer.decode(tokens[0], skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
