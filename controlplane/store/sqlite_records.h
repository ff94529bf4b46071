#pragma once
// The columns of VMs and migrations in the store's SQLite file, and how a row becomes a record. For the store alone,
// under its mutex. parsed() is for its other tables, too. What was written by us is taken as it is.

#include "controlplane/store/sqlite_statement.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

#define VM_COLUMNS "uuid, name, definition, host, ownership, image_id, epoch_next, tracker"
#define MIGRATION_COLUMNS                                                                                    \
  "id, vm_uuid, vm_name, plan, source, destination, state, reason, ownership_before, image_id, epoch_base, " \
  "epoch_count, reused, reuse_reason, created_unix_us, ended_unix_us, stop_unix_us, resume_unix_us, stats, " \
  "destination_stats, tracker, tracker_reason, source_settled, destination_settled"

template <typename Message>
[[nodiscard]] Message parsed(const std::string& bytes) {
  Message message;
  message.ParseFromString(bytes);  // written by us; fields of a later version are skipped
  return message;
}

[[nodiscard]] VmRecord vm_of(Use& use);
[[nodiscard]] MigrationRecord migration_of(Use& use);
[[nodiscard]] HostRecord host_of(Use& use);

}  // namespace godwit::controlplane
