"""`warmscale push`: a model folder to the Hub, in one commit."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add the folder and the repository."""
    parser.add_argument("folder", metavar="DIR", help="a model folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="organisation/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made if it does not exist")
    parser.add_argument("--message", default="Upload model", metavar="TEXT", help="first line of the commit")
    parser.add_argument("--overwrite", action="store_true", help="replace what the repository holds")


def run(arguments: Namespace) -> None:
    """Push, then name the commit."""
    from hf_warmscale.hub import push_to_hub

    commit = push_to_hub(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        commit_message=arguments.message,
        overwrite=arguments.overwrite,
    )
    show(
        [{"folder": arguments.folder, "repository": arguments.repo_id, "commit": commit}],
        then=["hf", "download", arguments.repo_id],
    )


PUSH = Verb(
    name="push",
    summary="send a model folder to the Hub in one commit",
    description="Send weights, tokenizer, receipts and a model card to the Hub in one commit. The token is the one of "
    "HF_TOKEN or of `hf auth login`; it is never printed.",
    example="warmscale push merged me/merged --private",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="the repository is empty or complete; run the same command again to push the rest.",
)
