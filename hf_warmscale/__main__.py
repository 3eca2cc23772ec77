"""`python -m hf_warmscale`, which is also what `accelerate launch -m hf_warmscale train ...` starts."""

import sys

from hf_warmscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
