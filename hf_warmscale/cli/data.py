"""`warmscale data`: pack text into rows of tokens, and add tokens for the text of a new domain."""

from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.quiet import late_bars_of_datasets
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add source, output, tokenizer and layout."""
    parser.add_argument("source", metavar="SOURCE", help="text, JSON lines or parquet: a file, a folder, a dataset")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for the rows")
    parser.add_argument("--tokenizer", required=True, metavar="NAME", help="a folder or a Hub id")
    parser.add_argument("--sequence-length", required=True, type=positive_int, metavar="N", help="tokens in a row")
    parser.add_argument(
        "--padding-free",
        action="store_true",
        help="one document a row, laid end to end in a batch, instead of full rows",
    )
    parser.add_argument("--subset", metavar="NAME", help="the configuration of a named dataset")
    parser.add_argument("--split", default="train", metavar="NAME", help="of a named dataset; train by default")
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column that holds the text; text by default"
    )
    _add_split_special_tokens(parser)
    parser.add_argument("--num-proc", type=positive_int, metavar="N", help="processes that tokenize")


def run(arguments: Namespace) -> None:
    """Pack, then show how many documents, rows and tokens there are."""
    with late_bars_of_datasets():
        from hf_warmscale.checkpoints import load_tokenizer
        from hf_warmscale.training.data.packing import pack

        manifest = pack(
            arguments.source,
            arguments.output,
            tokenizer=load_tokenizer(arguments.tokenizer),
            sequence_length=arguments.sequence_length,
            padding_free=arguments.padding_free,
            subset=arguments.subset,
            split=arguments.split,
            text_column=arguments.text_column,
            split_special_tokens=arguments.split_special_tokens,
            num_proc=arguments.num_proc,
        )
    show(
        [
            {
                "documents": manifest.documents,
                "rows": manifest.rows,
                "tokens": manifest.tokens,
                "dropped tokens": manifest.dropped_tokens,
                "bytes of text": manifest.text_bytes,
            }
        ],
        title=f"Packed {manifest.source} in rows of {manifest.sequence_length} tokens",
        written=[arguments.output],
        then=["warmscale", "train", "CONFIG.yaml"],
        remark=f"with {arguments.output} as a path of its mixture",
    )


def _add_split_special_tokens(parser: Parser) -> None:
    parser.add_argument(
        "--split-special-tokens",
        action=BooleanOptionalAction,
        help="read special tokens that the text spells as text, or as these tokens; by default text that spells the "
        "end-of-sequence token is refused",
    )


PACK = Verb(
    name="pack",
    summary="tokenize text and lay it out in rows",
    description="Tokenize documents and lay them out in rows of one length. The documents of a row do not attend to "
    "each other. pack.json in the folder describes the data.",
    example="warmscale data pack new.jsonl packed/new --tokenizer large \\\n  --sequence-length 1024",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="nothing was written; the tokens are cached, so run the same command again.",
)


def add_extend_arguments(parser: Parser) -> None:
    """Add the text of the new domain, the model and the number of tokens."""
    parser.add_argument("source", metavar="SOURCE", help="text of the new domain: a file, a folder, a dataset")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for model and tokenizer")
    parser.add_argument("--model", required=True, metavar="MODEL", help="a folder or a Hub id, with its tokenizer")
    parser.add_argument("--new-tokens", required=True, type=positive_int, metavar="N", help="tokens to add at most")
    parser.add_argument("--subset", metavar="NAME", help="the configuration of a named dataset")
    parser.add_argument("--split", default="train", metavar="NAME", help="of a named dataset; train by default")
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column that holds the text; text by default"
    )
    _add_split_special_tokens(parser)


def run_extend(arguments: Namespace) -> None:
    """Extend the tokenizer and the embeddings, then show how much shorter the text became."""
    from hf_warmscale.checkpoints import (
        explained_full_disk,
        load_model,
        load_tokenizer,
        refuse_existing,
        require_model,
        save_model,
        shared_ids,
    )
    from hf_warmscale.resize.vocabulary import extend_tokenizer, grow_vocabulary
    from hf_warmscale.training.data.documents import load_documents, read_texts

    refuse_existing(arguments.output)
    whole = require_model(arguments.model)  # before the text is read, which may take long
    tokenizer = load_tokenizer(arguments.model)
    rows_of_model = next(whole.model.get_input_embeddings().parameters()).shape[0]
    shared_ids({arguments.model: rows_of_model}, {arguments.model: tokenizer})  # refuses ids without a row
    column = arguments.text_column
    with late_bars_of_datasets():
        documents = load_documents(
            arguments.source, subset=arguments.subset, split=arguments.split, text_column=column
        )
    split = arguments.split_special_tokens
    texts = read_texts(documents, arguments.source, tokenizer, text_column=column, split_special_tokens=split)
    with explained_full_disk(Path(arguments.output)):
        extended = extend_tokenizer(tokenizer, texts, arguments.new_tokens)
    model = load_model(arguments.model, finite=False)
    text_bytes = sum(len(text.encode()) for text in texts)
    rows = [
        {"tokenizer": name, "tokens": len(given), "tokens of the text": count, "bytes a token": text_bytes / count}
        for name, given in (("old", tokenizer), ("new", extended))
        for count in [sum(map(len, given(texts, split_special_tokens=bool(split))["input_ids"]))]
    ]
    grown = grow_vocabulary(model, tokenizer, extended)
    save_model(grown, arguments.output, tokenizer=extended, receipts={"vocabulary.json": {"tokenizers": rows}})
    following = ["warmscale", "data", "pack", "SOURCE", "OUTPUT", "--tokenizer", arguments.output]
    show(rows, written=[arguments.output], then=following)


EXTEND = Verb(
    name="extend",
    summary="give a model more tokens for a new domain",
    description="Continue the training of a model's BPE tokenizer on text of a new domain. Each new token starts with "
    "the mean embedding of the old tokens it is made of. Compare losses in bits per byte afterwards.",
    example="warmscale data extend new.jsonl extended --model large --new-tokens 500",
    add_arguments=add_extend_arguments,
    run=run_extend,
)

DATA = Verb(name="data", summary="prepare text for training", verbs=(PACK, EXTEND))
