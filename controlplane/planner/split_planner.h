#pragma once
// Decides whether a VM may be split, and which hosts lend how much of their memory to it. Pure: looks at what the store
// and the hosts say, changes nothing, any thread. Every refusal has its reason in one line, for the operator. The hosts
// check again for themselves: what they say of their memory is a second old. Sizes in bytes.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "controlplane/planner/planner.h"

namespace godwit::controlplane {

struct SubShare {
  std::string host;
  std::uint64_t bytes_lent = 0;
};

struct SplitQuestion {
  const VmRecord& vm;
  std::uint64_t budget_bytes = 0;
  std::vector<std::string> sub_hosts;            // asked for by name; none: chosen here
  std::vector<PageStoreRecord> own;              // the VM's page stores that stay
  std::set<std::string> without;                 // hosts that are to hold nothing of it
  dpapi::Tracker tracker = dpapi::TRACKER_AUTO;  // by which its host says that it is tracked, if it does
  std::map<std::string, const HostView*> hosts;
  std::map<std::string, std::uint64_t> promised;  // by all page stores of the cluster
  std::map<std::string, std::uint64_t> freed;     // of that, by those that go before the VM is split
};

/// The page stores to be added, so that all of them together hold what the budget leaves. None, if they do already.
[[nodiscard]] std::expected<std::vector<SubShare>, Refused> plan_split(const SplitQuestion& question);

/// Why the main host cannot take back all pages of a split VM, of which it holds so many bytes.
[[nodiscard]] std::optional<Refused> gather_refusal(const VmRecord& vm, const HostView& main,
                                                    std::uint64_t resident_bytes);

/// What a page store takes for so many bytes of pages: its records are within its budget too, 0.85 % of them
/// (dataplane/memserver/page_store.h), and what comes in batches.
[[nodiscard]] std::uint64_t page_store_bytes(std::uint64_t bytes_of_pages);

}  // namespace godwit::controlplane
