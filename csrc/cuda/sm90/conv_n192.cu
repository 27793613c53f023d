#include "conv.cuh"

static_assert(cvk::kConvTiles[2].n == 192, "the file is named after the tile");
template void cvk::conv_sm90<2>(const cvk::ImplicitConv&, const cvk::Target&);
