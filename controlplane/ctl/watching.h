#pragma once
// Follows one migration to its end: a live line on a terminal, plain lines elsewhere, JSON when asked for. Ctrl-C on a
// terminal asks whether to cancel the migration or to leave it running; elsewhere it leaves it running. SIGINT must be
// blocked before any thread is started (block_interrupt).

#include <string>

#include "controlplane/ctl/client.h"

namespace godwit::ctl {

enum class WatchOutput : std::uint8_t { kPeople, kJsonEach, kJsonLast };

void block_interrupt();

/// Of standard output; a hundred where it is no terminal.
[[nodiscard]] std::size_t terminal_columns();

/// Exit status: 0 only when COMMITTED.
[[nodiscard]] int watch_to_end(Client& client, const std::string& migration_id, WatchOutput output);

}  // namespace godwit::ctl
