// Large fresh memory costs a page fault per 4 KiB when it is first written; with huge pages one per 2 MiB.
#pragma once

#include <cstdint>

namespace cvk {

// A hint about memory of the caller's; does nothing where the system has no such call.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace cvk
