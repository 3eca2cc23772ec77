"""`MupForCausalLM`: a muP or CompleteP language model that saves as a stock Granite checkpoint."""

from torch import nn
from transformers import GraniteForCausalLM, GraniteModel
from transformers import initialization as init
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from hf_warmscale.mup.configuration import MupConfig
from hf_warmscale.mup.granite_form import GraniteForm, refuse_stale_multipliers


class MupPreTrainedModel(GranitePreTrainedModel):
    """Granite whose matrices start at muP's standard deviations; nothing is attached to any tensor."""

    config: MupConfig

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Linear):
            super()._init_weights(module)  # type: ignore[no-untyped-call]
            return
        # The factor belongs into the std. transformers' `init.*` skip tensors that were loaded from a file, but a
        # `mul_` after the draw would not, and it would scale them on every load.
        factor = GraniteForm.from_config(self.config).linear_init(_last_name(self, module))
        init.normal_(module.weight, mean=0.0, std=self.config.initializer_range * factor)
        if module.bias is not None:
            init.zeros_(module.bias)


class MupModel(MupPreTrainedModel, GraniteModel):
    """The blocks of [`MupForCausalLM`], without its readout."""


class MupForCausalLM(MupPreTrainedModel, GraniteForCausalLM):
    """A causal language model in muP or CompleteP.

    The forward pass is Granite's own, so that every attention backend, the cache, `generate`, checkpointing and
    compilation are Granite's. `save_pretrained` writes a stock Granite checkpoint.

    Example:

    ```python
    >>> model = MupForCausalLM(config)
    >>> optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1))
    >>> model.save_pretrained(folder)
    >>> AutoModelForCausalLM.from_pretrained(folder)  # GraniteForCausalLM: the same logits
    ```

    Raises:
        ValueError: if the config's multipliers do not follow from its sizes.
    """

    def __init__(self, config: MupConfig) -> None:
        refuse_stale_multipliers(config)
        # Not GraniteForCausalLM.__init__: it would build, and draw, a GraniteModel first.
        super(GraniteForCausalLM, self).__init__(config)
        self.model = MupModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


def _last_name(model: nn.Module, module: nn.Module) -> str:
    # `resize_token_embeddings` draws a new readout before it is part of the model.
    path: str = next((name for name, child in model.named_modules() if child is module), "lm_head")
    return path.rpartition(".")[2]
