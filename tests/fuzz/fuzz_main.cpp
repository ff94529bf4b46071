// The libFuzzer program around a target. `TARGET --write-seeds FOLDER` writes its seeds instead.

#include <fstream>

#include "tests/fuzz/fuzz.h"

namespace {

void write_seeds(const std::string& folder) {
  for (const auto& seed : godwit::fuzz::seeds()) {
    std::ofstream file(folder + "/" + seed.name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.bytes.data()), static_cast<std::streamsize>(seed.bytes.size()));
    FUZZ_CHECK(file.good());
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(const int* argc, char*** argv) {
  if (*argc == 3 && std::strcmp((*argv)[1], "--write-seeds") == 0) {
    write_seeds((*argv)[2]);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  godwit::fuzz::run(std::as_bytes(std::span(data, size)));
  return 0;
}
