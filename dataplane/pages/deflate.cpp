#include "dataplane/pages/deflate.h"

#include <isa-l/igzip_lib.h>

#include <cstdint>
#include <memory>

namespace godwit::pages {

bool deflate(std::span<const std::byte> in, std::size_t bytes_max, std::vector<std::byte>& out) {
  const auto stream = std::make_unique<isal_zstream>();
  const auto level_buffer = std::make_unique_for_overwrite<std::uint8_t[]>(ISAL_DEF_LVL1_DEFAULT);
  isal_deflate_stateless_init(stream.get());
  out.resize(bytes_max);
  stream->level = 1;
  stream->level_buf = level_buffer.get();
  stream->level_buf_size = ISAL_DEF_LVL1_DEFAULT;
  stream->end_of_stream = 1;
  stream->flush = NO_FLUSH;
  // ISA-L's pointers lack the const; it only reads next_in.
  stream->next_in = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(in.data()));
  stream->avail_in = static_cast<std::uint32_t>(in.size());
  stream->next_out = reinterpret_cast<std::uint8_t*>(out.data());
  stream->avail_out = static_cast<std::uint32_t>(out.size());
  if (isal_deflate_stateless(stream.get()) != COMP_OK || stream->avail_in != 0) return false;
  out.resize(stream->total_out);
  return out.size() < bytes_max;
}

bool inflate(std::span<const std::byte> in, std::span<std::byte> out) {
  const auto state = std::make_unique<inflate_state>();
  isal_inflate_init(state.get());
  state->next_in = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(in.data()));
  state->avail_in = static_cast<std::uint32_t>(in.size());
  state->next_out = reinterpret_cast<std::uint8_t*>(out.data());
  state->avail_out = static_cast<std::uint32_t>(out.size());
  return isal_inflate_stateless(state.get()) == ISAL_DECOMP_OK && state->block_state == ISAL_BLOCK_FINISH &&
         state->avail_in == 0 && state->total_out == out.size();
}

}  // namespace godwit::pages
