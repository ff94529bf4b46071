#pragma once
// The release that this program was built from. Any thread; no failure.

namespace godwit::config {

/// "0.1.0", as meson.build has it.
[[nodiscard]] const char* version();

}  // namespace godwit::config
