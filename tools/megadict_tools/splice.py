"""A language model with something else in the place of the activations of one site."""

import torch

from .models import Target, check_targets, hook_site


class Splice:
    """Runs batches of windows, first as they are, then with other rows at chosen positions.

        rows, logits = splice.clean(input_ids, mask)      # mask [windows, positions]
        logits = splice.spliced(changed(rows))            # as often as wanted, the same windows

    Blocks before the site compute the same every time and are passed over in spliced().
    """

    def __init__(self, model, target: Target):
        family = check_targets(model.config, [target])
        self.model, self.site, self.layer = model, target.site, target.layer
        self.blocks = model.base_model.get_submodule(family.blocks)
        block = self.blocks[target.layer]
        block.register_forward_hook(self._leave)
        hook_site(block, family, "resid_pre", self._enter)
        hook_site(block, family, target.site, self._at_site)
        self.new_rows = None

    @torch.inference_mode()
    def clean(self, input_ids: torch.Tensor, mask: torch.Tensor):
        """The rows [rows, d] where mask is set, window by window, and logits [windows, positions,
        vocabulary]. input_ids are padded on the right, where causal attention never looks."""
        self.input_ids, self.mask, self.new_rows = input_ids, mask, None
        logits = self._run()
        return self.rows, logits

    @torch.inference_mode()
    def spliced(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits with `rows` where mask is set."""
        self.new_rows = rows
        passed = self.blocks[:self.layer]
        for block in passed:
            block.forward = self._passed_over
        try:
            return self._run()
        finally:
            for block in passed:
                del block.forward

    def _run(self) -> torch.Tensor:
        return self.model(input_ids=self.input_ids, use_cache=False).logits

    def _passed_over(self, hidden_states, *_args, **_kwargs):
        return (hidden_states,) if self.blocks_give_tuples else hidden_states

    def _enter(self, stream: torch.Tensor):
        """The stream that enters the site's block: kept, and given again."""
        if self.new_rows is None:
            self.stream = stream.clone()
            return None
        return self.stream.clone()

    def _leave(self, _module, _args, output):
        self.blocks_give_tuples = isinstance(output, tuple)

    def _at_site(self, value: torch.Tensor):
        if self.new_rows is None:
            self.rows = value[self.mask].float()
            return None
        # In place: the stream at resid_mid is the same tensor as the MLP's input.
        value[self.mask] = self.new_rows.to(value.dtype)
        return value
