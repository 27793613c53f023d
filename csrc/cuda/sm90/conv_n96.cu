#include "conv.cuh"

static_assert(cvk::kConvTiles[0].n == 96, "the file is named after the tile");
template void cvk::conv_sm90<0>(const cvk::ImplicitConv&, const cvk::Target&);
