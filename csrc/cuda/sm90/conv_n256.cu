#include "conv.cuh"

static_assert(cvk::kConvTiles[3].n == 256, "the file is named after the tile");
template void cvk::conv_sm90<3>(const cvk::ImplicitConv&, const cvk::Target&);
