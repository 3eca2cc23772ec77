"""Whatever is wrong with an input, a verb says it in one sentence and leaves everything as it was."""

import pytest

from tests.contract.inputs import INPUTS
from tests.contract.matrix import VERBS, Contract, cell, is_fault


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return Contract(tmp_path_factory.mktemp("contract") / "work")


@pytest.mark.xdist_group("contract")
@pytest.mark.parametrize("verb", VERBS)
def test_every_input_is_refused_or_fine(verb: str, contract: Contract) -> None:
    texts = {what: cell(contract, verb, what) for what in INPUTS}
    faults = {what: text for what, text in texts.items() if is_fault(verb, what, text)}
    assert not faults, "\n".join(f"{what}: {text}" for what, text in faults.items())
