#include "config/version.h"

namespace godwit::config {

const char* version() { return GODWIT_VERSION; }

}  // namespace godwit::config
