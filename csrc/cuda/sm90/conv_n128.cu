#include "conv.cuh"

static_assert(cvk::kConvTiles[1].n == 128, "the file is named after the tile");
template void cvk::conv_sm90<1>(const cvk::ImplicitConv&, const cvk::Target&);
