// Work that goes on beside a long computation: loops of the kernels call give_way() now and then,
// and whoever has something under way that needs this processor (comm: messages) has said what is
// to be done then.
#pragma once

namespace megadict {

// Does nothing but on the thread that called set_background(), also inside an OpenMP region.
void give_way();

// `work` must not throw; nullptr = none.
void set_background(void (*work)());

}  // namespace megadict
