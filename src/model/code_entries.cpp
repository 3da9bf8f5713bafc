#include "model/code_entries.h"

#include <ATen/ATen.h>

namespace megadict {

Codes entries_where(const Codes& codes, const at::Tensor& kept) {
  const at::Tensor before = at::cat({at::zeros({1}, codes.row_start.options()), kept.cumsum(0)});
  return {codes.rows, codes.latents, before.index_select(0, codes.row_start),
          codes.latent.masked_select(kept), codes.value.masked_select(kept)};
}

}  // namespace megadict
