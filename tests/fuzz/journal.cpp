// What the bridge reads from files: its journal's records, and /proc/PID/maps. Input: one byte (bit 0: which), the
// text. Properties: an accepted record written again reads as the same record; mappings of a read map are whole, and
// joined where they continue each other.

#include "qemu-bridge/agent/journal.h"

#include "qemu-bridge/attach/ram_discovery.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

void check_record(std::string_view text) {
  const auto record = bridge::parse_record(std::string(text));
  if (!record) {
    FUZZ_CHECK(!record.error().empty());
    return;
  }
  FUZZ_CHECK(!record->definition.uuid.is_nil() && !record->definition.regions.empty());
  FUZZ_CHECK(record->process.pid >= -1 && record->userfaultfd_in_qemu >= -1);
  const std::string written = bridge::to_text(*record);
  const auto again = bridge::parse_record(written);
  FUZZ_CHECK(again && bridge::to_text(*again) == written);
}

void check_maps(std::string_view text) {
  const auto mappings = bridge::parse_maps(text);
  if (!mappings) {
    return;
  }
  for (const auto& mapping : *mappings) {
    FUZZ_CHECK(mapping.bytes > 0 && mapping.address + mapping.bytes > mapping.address && mapping.inode != 0);
  }
  for (std::size_t i = 1; i < mappings->size(); ++i) {
    const auto& before = (*mappings)[i - 1];
    const auto& next = (*mappings)[i];
    const bool continues = before.address + before.bytes == next.address &&
                           before.file_offset + before.bytes == next.file_offset && before.device == next.device &&
                           before.inode == next.inode && before.shared == next.shared &&
                           before.writable == next.writable;
    FUZZ_CHECK(!continues);
  }
}

bridge::VmRecord example() {
  bridge::VmRecord record;
  record.definition.name = "vm1";
  record.definition.uuid = *Id128::parse("6f1a2b3c-0000-4000-8000-000000000001");
  record.definition.machine = "pc-i440fx-7.2";
  record.definition.regions = {{"ram0", 64U << 20, config::Backing::kTmpfs}};
  record.definition.arguments = {"-nographic", "-serial", "unix:${run_dir}/console.sock"};
  record.image_id = *Id128::parse("6f1a2b3c-0000-4000-8000-000000000002");
  record.ownership = 4;
  record.epoch = 9;
  record.qmp_path = "/run/godwit/vm1.qmp";
  record.process = {1234, 99};
  record.machine_type = "pc-i440fx-7.2";
  record.ram_files = {{"ram0", "/dev/shm/godwit/vm1.ram0"}};
  return record;
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  if (input.flag()) {
    check_maps(as_text(input.rest()));
  } else {
    check_record(as_text(input.rest()));
  }
}

std::vector<Seed> seeds() {
  bridge::VmRecord record = example();
  std::vector<Seed> out;
  out.push_back({"record", Output().number<std::uint8_t>(0).text(bridge::to_text(record)).take()});
  record.migration = bridge::MigrationRecord{*Id128::parse("6f1a2b3c-0000-4000-8000-000000000003"),
                                             bridge::MigrationRole::kSource, bridge::MigrationPhase::kSwitching, 5};
  out.push_back({"migrating", Output().number<std::uint8_t>(0).text(bridge::to_text(record)).take()});
  constexpr std::string_view kMaps =
      "7f0000000000-7f0000100000 rw-s 00000000 00:19 1234                       /dev/shm/ram0\n"
      "7f0000100000-7f0000200000 rw-s 00100000 00:19 1234                       /dev/shm/ram0\n"
      "7f0000200000-7f0000201000 rw-p 00000000 00:00 0 \n"
      "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n";
  out.push_back({"maps", Output().number<std::uint8_t>(1).text(kMaps).take()});
  return out;
}

}  // namespace godwit::fuzz
