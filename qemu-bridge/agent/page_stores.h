#pragma once
// PageStores: this host as sub host, its part of VMs that run elsewhere. The data plane holds the pages; here is a
// record of each store, a JSON file in <state_dir>/stores: written before the data plane hears of it, removed once it
// has dropped it by the control plane's word. Nothing else ends a store, and what is promised counts as used.
// Threads: prepare, start and drop in one queue, blocking on the data plane; the others in any.
// Failure: an Error, one line for a person. A record that cannot be read is kept as *.broken; the data plane lists its
// store all the same, and it is told on.

#include <expected>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/uuid.h"
#include "controlplane.pb.h"
#include "qemu-bridge/agent/dataplane_client.h"

namespace godwit::bridge {

struct StoreRecord {
  Id128 id;
  Id128 vm_uuid;
  std::string vm_name;
  std::string main_host;
  std::uint64_t ownership = 0;
  std::uint64_t bytes_lent = 0;
  bool made = false;  // the data plane has had it: if it has none now, pages are lost
};

std::string to_text(const StoreRecord& record);
std::expected<StoreRecord, std::string> parse_store_record(const std::string& text);

class PageStores {
 public:
  using Error = dataplane::v1::Error;
  using Result = std::expected<controlplane::v1::AgentReply, Error>;

  PageStores(const std::filesystem::path& state_dir, std::uint64_t lend_bytes)
      : dir_(state_dir / "stores"), lend_bytes_(lend_bytes) {}
  /// Before all else. What could not be read, one line each.
  std::expected<std::vector<std::string>, FileError> load();

  /// `free_bytes`: of this host, after all that is promised.
  Result prepare(DataplaneClient& dataplane, const controlplane::v1::PrepareStore& command, std::uint64_t free_bytes);
  static Result start(DataplaneClient& dataplane, const controlplane::v1::StartStore& command);
  Result drop(DataplaneClient& dataplane, const controlplane::v1::DropStore& command);

  /// What the data plane says now; nullptr: nothing, it is down.
  void take(const dataplane::v1::Status* status);
  /// Stores that only the data plane knows are among them.
  [[nodiscard]] std::vector<controlplane::v1::HeldStore> held() const;
  [[nodiscard]] std::uint64_t lent_bytes() const;
  /// Of that, what is not in its files yet: to be kept free.
  [[nodiscard]] std::uint64_t unfilled_bytes() const;

 private:
  struct Held {
    StoreRecord record;
    dataplane::v1::StoreStatus status;
    bool lost = false;
  };

  [[nodiscard]] std::filesystem::path path_of(const Id128& id) const { return dir_ / (id.text() + ".json"); }
  std::expected<void, Error> check(const StoreRecord& asked, bool create, std::uint64_t free_bytes) const;
  std::expected<void, Error> save(const StoreRecord& record);

  const std::filesystem::path dir_;
  const std::uint64_t lend_bytes_;
  mutable std::mutex mutex_;
  std::map<Id128, Held> stores_;
  std::vector<dataplane::v1::StoreStatus> strangers_;
};

}  // namespace godwit::bridge
