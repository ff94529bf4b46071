// The requests of a guest that is split, at its main host. What a split is made of is in live_split.h; here it is
// begun, changed and ended, and its flows come and go.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"
#include "dataplane/daemon/service.h"
#include "dataplane/daemon/split_flow.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kMarginBytesMax = 64U << 20;
constexpr std::uint32_t kSubsMax = 4096;

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

std::expected<SplitLimits, ApiError> parse_limits(const api::SplitGuest& request, memory::EvictionOrder order) {
  if (request.gather()) {
    return SplitLimits{.gather = true};
  }
  const std::uint64_t budget = request.budget_bytes();
  const std::uint64_t margin = std::min(budget / 16, kMarginBytesMax);
  const std::uint64_t high = request.high_bytes() != 0 ? request.high_bytes() : budget - margin;
  const std::uint64_t low = request.low_bytes() != 0 ? request.low_bytes() : high - std::min(high, margin);
  if (budget < kBudgetBytesMin || high >= budget || low >= high) {
    return std::unexpected(bad_request("SplitGuest: budget_bytes " + std::to_string(budget) + ", high_bytes " +
                                       std::to_string(high) + ", low_bytes " + std::to_string(low) +
                                       ": the budget is at least 16 MiB, and above the marks in that order"));
  }
  return SplitLimits{.budget_pages = budget / pages::kPageSize,
                     .high_pages = high / pages::kPageSize,
                     .low_pages = low / pages::kPageSize,
                     .order = order};
}

struct StoreOrder {
  split::SubId sub = 0;
  bool drain = false;
};

std::expected<std::map<Id128, StoreOrder>, ApiError> parse_stores(const api::SplitGuest& request) {
  std::map<Id128, StoreOrder> stores;
  for (const api::SubStore& store : request.stores()) {
    const auto id = parse_id(store.store_id(), "SplitGuest: stores: store_id");
    if (!id) {
      return std::unexpected(id.error());
    }
    const bool taken = std::ranges::any_of(stores, [&](const auto& its) { return its.second.sub == store.sub(); });
    const StoreOrder order{.sub = static_cast<split::SubId>(store.sub()), .drain = store.drain()};
    if (store.sub() >= kSubsMax || taken || !stores.emplace(*id, order).second) {
      return std::unexpected(bad_request("SplitGuest: store " + id->text() + " or its number " +
                                         std::to_string(store.sub()) + " is given twice, or above 4095"));
    }
  }
  return stores;
}

void add_runs(const std::vector<transfer::PageRun>& runs, google::protobuf::RepeatedPtrField<api::PageRun>& out) {
  for (const transfer::PageRun& run : runs) {
    auto& its = *out.Add();
    its.set_first(run.first);
    its.set_count(run.count);
  }
}

}  // namespace

/// What a job makes of a request.
struct Service::Splitting {
  Id128 vm;
  SplitLimits limits;
  std::map<Id128, StoreOrder> stores;
  std::optional<memory::PinPipe> pipe;
  std::shared_ptr<LiveSplit> split;  // that there is, or that was made
  bool fresh = false;                // made here
  std::expected<void, memory::Error> result;
  Respond respond;
};

void Service::split_guest(const api::SplitGuest& request, std::vector<UniqueFd> descriptors, const Respond& respond) {
  const auto vm = parse_id(request.vm_uuid(), "SplitGuest: vm_uuid");
  const auto limits = parse_limits(request, options_.eviction_order);
  const auto stores = parse_stores(request);
  if (!vm || !limits || !stores) {
    return respond(refusal(!vm ? vm.error() : !limits ? limits.error() : stores.error()));
  }
  if (descriptors.size() != 2) {
    return respond(refusal(bad_request("SplitGuest: " + std::to_string(descriptors.size()) +
                                       " descriptors came, two belong to it: the pin pipe's ends")));
  }
  auto entry = find_guest(*vm, request.ownership());
  if (!entry) {
    return respond(refusal(entry.error()));
  }
  Guest& guest = *(*entry)->guest;
  SplitSession& session = splits_[*vm];
  const SplitFigures figures = guest.split ? guest.split->figures() : SplitFigures();
  const bool leaves_out = std::ranges::any_of(session.subs, [&](const auto& sub) {
    const auto its = stores->find(sub.first);
    const auto counted = figures.subs.find(sub.second.sub);
    return its == stores->end() ? sub.second.changing || counted == figures.subs.end() || !counted->second.drained
                                : its->second.sub != sub.second.sub;
  });
  if (guest.memory->ram().any_huge()) {
    return respond(refusal(bad_request("SplitGuest: VM " + vm->text() +
                                       " has RAM on hugetlbfs, which is not evicted: start it with RAM on tmpfs")));
  }
  const auto migration = sessions_.find((*entry)->migration);
  const bool moves = migration != sessions_.end() &&
                     !(migration->second->committed && migration->second->role == api::ROLE_DESTINATION);
  if (!guest.split_allowed || moves || guest.kind == api::AttachGuest::ARRIVING || session.busy || leaves_out) {
    const std::string why = session.busy ? " is just being split or gathered: ask again"
                            : leaves_out ? " has a store that is left out and not drained, or has another number now"
                            : guest.split_allowed ? " has not arrived, or is in a migration"
                                                  : " was attached without `split`";
    return respond(refusal(bad_request("SplitGuest: VM " + vm->text() + why)));
  }
  auto pipe = memory::PinPipe::take(std::move(descriptors[0]), std::move(descriptors[1]));
  if (!pipe) {
    return respond(refusal({to_api(pipe.error().code), "SplitGuest: " + pipe.error().text}));
  }
  session.busy = true;
  auto splitting = std::make_shared<Splitting>();
  splitting->vm = *vm;
  splitting->limits = *limits;
  splitting->stores = *stores;
  splitting->pipe = std::move(*pipe);
  splitting->split = guest.split;
  splitting->respond = respond;
  (*entry)->worker->submit([this, splitting, &guest] { run_split_job(*splitting, guest); }, control_,
                           [this, splitting] { split_done(*splitting); });
}

void Service::run_split_job(Splitting& splitting, Guest& guest) {
  if (!splitting.split) {
    auto made = create_split(guest, options_.missing_dir, std::move(*splitting.pipe));
    if (!made) {
      splitting.result = std::unexpected(made.error());
      return;
    }
    splitting.split = std::move(*made);
    splitting.fresh = true;
  } else if (!splitting.split->complete()) {
    splitting.result = splitting.split->continue_with(std::move(*splitting.pipe));
    if (splitting.result && guest.pulls_on) {
      splitting.result = splitting.split->await_rest();
    }
  }
  if (splitting.result) {
    splitting.result = splitting.split->set_limits(splitting.limits);
  }
  if (splitting.result && !splitting.split->begun()) {
    splitting.split->begin(data_path_.inbox(), split_told(splitting.vm));
  }
  if (!splitting.result && splitting.fresh) {
    // Nobody would answer its faults.
    static_cast<void>(splitting.split->end());
    splitting.split.reset();
    LiveSplit::remove_files(options_.missing_dir, splitting.vm);
  }
}

void Service::split_done(Splitting& splitting) {
  SplitSession& session = splits_.at(splitting.vm);
  Entry& entry = guests_.at(splitting.vm);
  if (!splitting.result) {
    session.busy = false;
    spdlog::warn("VM {}: not split: {}", splitting.vm.text(), printable(splitting.result.error().text));
    return splitting.respond(
        refusal({to_api(splitting.result.error().code), "SplitGuest: " + splitting.result.error().text}));
  }
  entry.guest->split = splitting.split;
  if (std::exchange(entry.guest->pulls_on, false) && splitting.split->pager()->awaited_count() != 0) {
    entry.guest->paging = LivePaging::of_split(*entry.guest->memory, splitting.split,
                                               static_cast<std::uint32_t>(data_path_.lcore_count()), true);
    publish_guests();
  }
  auto done = std::make_shared<Splitting>(std::move(splitting));
  data_path_.inbox().post([this, done] {
    split::MainHost& main = done->split->main();
    for (const auto& [id, order] : done->stores) {
      if (!main.has_sub(order.sub)) {
        main.add_sub(order.sub, to_memory_id(id));
      }
      main.drain(order.sub, order.drain);
    }
    data_path_.watch(done->split);
    done->split->tell_figures();  // who asks from now on is told what each store has
    control_.post([this, done] {
      done->split.reset();  // the guest's alone
      if (const auto its = splits_.find(done->vm); its != splits_.end()) {
        for (const auto& [id, order] : done->stores) {
          its->second.subs[id].sub = order.sub;
        }
      }
      leave_out(done);
    });
  });
}

/// One after the other, each with its flow: stores that the VM has no more. Then the reply.
void Service::leave_out(const std::shared_ptr<Splitting>& splitting) {
  const auto session = splits_.find(splitting->vm);
  const auto guest = guests_.find(splitting->vm);
  if (session == splits_.end() || guest == guests_.end() || !guest->second.guest || !guest->second.guest->split) {
    return splitting->respond(
        refusal({api::Error::NO_SUCH_VM, "SplitGuest: VM " + splitting->vm.text() + " has gone meanwhile"}));
  }
  auto& subs = session->second.subs;
  const auto left_out =
      std::ranges::find_if(subs, [&](const auto& sub) { return !splitting->stores.contains(sub.first); });
  if (left_out == subs.end()) {
    session->second.busy = false;
    return respond_split(*splitting);
  }
  left_out->second.started = false;
  const std::uint32_t flow_id = std::exchange(left_out->second.flow_id, 0);
  release_flow(
      flow_id, [this, splitting, split = guest->second.guest->split, id = left_out->first, sub = left_out->second.sub] {
        data_path_.inbox().post([this, splitting, split, id, sub] {
          const bool removed = split->main().remove_sub(sub);
          control_.post([this, splitting, id, removed] {
            const auto its = splits_.find(splitting->vm);
            if (its != splits_.end() && !removed) {
              its->second.busy = false;
              return splitting->respond(refusal(
                  bad_request("SplitGuest: store " + id.text() + " is left out, and was given pages meanwhile")));
            }
            if (its != splits_.end()) {
              its->second.subs.erase(id);
            }
            leave_out(splitting);
          });
        });
      });
}

void Service::respond_split(const Splitting& splitting) {
  spdlog::info("VM {}: {}, {} stores", splitting.vm.text(),
               splitting.limits.gather ? "gathers what is elsewhere"
                                       : "split, budget " + std::to_string(splitting.limits.budget_pages) + " pages",
               splitting.stores.size());
  api::Reply reply;
  fill_status(splitting.vm, *reply.mutable_split_guest()->mutable_status());
  splitting.respond(std::move(reply));
}

/// On the home lcore; the rest happens here.
SplitTold Service::split_told(const Id128& vm) {
  const auto tell = [this, vm](split::SubId sub, auto fill) {
    control_.post([this, vm, sub, fill] {
      const auto session = splits_.find(vm);
      if (session == splits_.end()) {
        return;
      }
      const auto its =
          std::ranges::find_if(session->second.subs, [sub](const auto& one) { return one.second.sub == sub; });
      if (its != session->second.subs.end()) {
        api::Event event;
        fill(event, its->first, its->second);
        emit_(event);
      }
    });
  };
  SplitTold told;
  told.sub_lost = [tell, vm](split::SubId sub, const std::string& why) {
    tell(sub, [vm, why](api::Event& event, const Id128& store, SplitSub& its) {
      its.reason = why;
      spdlog::warn("VM {}: store {}: {}", vm.text(), store.text(), printable(why));
      event.mutable_sub_lost()->set_vm_uuid(vm.to_bytes());
      event.mutable_sub_lost()->set_store_id(store.to_bytes());
      event.mutable_sub_lost()->set_reason(printable(why, kTextBytesMax));
    });
  };
  told.sub_full = [tell, vm](split::SubId sub) {
    tell(sub, [vm](api::Event& event, const Id128& store, SplitSub&) {
      event.mutable_sub_full()->set_vm_uuid(vm.to_bytes());
      event.mutable_sub_full()->set_store_id(store.to_bytes());
    });
  };
  told.pages_lost = [tell, vm](split::SubId sub, std::uint64_t pages) {
    tell(sub, [vm, pages](api::Event& event, const Id128& store, SplitSub&) {
      event.mutable_pages_lost()->set_vm_uuid(vm.to_bytes());
      event.mutable_pages_lost()->set_store_id(store.to_bytes());
      event.mutable_pages_lost()->set_pages(pages);
    });
  };
  told.blocked = [this, vm](std::uint64_t pages) {
    control_.post([this, vm, pages] {
      if (splits_.contains(vm)) {
        api::Event event;
        event.mutable_guest_blocked()->set_vm_uuid(vm.to_bytes());
        event.mutable_guest_blocked()->set_pages(pages);
        emit_(event);
      }
    });
  };
  told.gathered = [this, vm] { control_.post([this, vm] { gathered(vm); }); };
  return told;
}

// ---- flows ----

std::expected<std::pair<SplitSession*, SplitSub*>, ApiError> Service::find_sub(const std::string& vm_uuid,
                                                                               const std::string& store_id,
                                                                               const char* request) {
  const auto vm = parse_id(vm_uuid, (std::string(request) + ": vm_uuid").c_str());
  const auto id = parse_id(store_id, (std::string(request) + ": store_id").c_str());
  if (!vm || !id) {
    return std::unexpected(!vm ? vm.error() : id.error());
  }
  const auto session = splits_.find(*vm);
  const auto guest = guests_.find(*vm);
  if (session == splits_.end() || guest == guests_.end() || !guest->second.guest || !guest->second.guest->split ||
      !guest->second.guest->split->begun() || session->second.busy) {
    return std::unexpected(
        ApiError{api::Error::NO_SUCH_VM, std::string(request) + ": VM " + vm->text() + " is not split here"});
  }
  const auto sub = session->second.subs.find(*id);
  if (sub == session->second.subs.end()) {
    return std::unexpected(ApiError{api::Error::NO_SUCH_STORE, std::string(request) + ": store " + id->text() +
                                                                   " is none of the VM's: SplitGuest names them"});
  }
  return std::pair{&session->second, &sub->second};
}

void Service::prepare_sub(const api::PrepareSub& request, const Respond& respond) {
  const auto cipher = parse_encryption(request.encryption());
  const auto found = find_sub(request.vm_uuid(), request.store_id(), "PrepareSub");
  if (!cipher || !found) {
    return respond(refusal(!cipher ? cipher.error() : found.error()));
  }
  const Id128 vm = parse_id(request.vm_uuid(), "").value();
  if (const auto refused = options_.refuse_clear_text(*cipher)) {
    return respond(refusal(*refused));
  }
  if (const auto entry = find_guest(vm, request.ownership()); !entry) {
    return respond(refusal(entry.error()));
  }
  SplitSub& sub = *found->second;
  if (sub.changing) {
    return respond(refusal(bad_request("PrepareSub: it is being prepared: ask again")));
  }
  sub.changing = true;
  sub.cipher = *cipher;
  sub.reason = "not connected yet";
  release_flow(std::exchange(sub.flow_id, 0), [this, vm, id = parse_id(request.store_id(), "").value(), respond] {
    const auto session = splits_.find(vm);
    if (session == splits_.end()) {
      return respond(refusal({api::Error::NO_SUCH_VM, "PrepareSub: VM " + vm.text() + " is not split any more"}));
    }
    SplitSub& its = session->second.subs.at(id);
    its.changing = false;
    its.started = false;
    its.flow_id = flow_ids_.draw();
    if (its.flow_id == 0) {
      return respond(refusal({api::Error::NO_MEMORY, "PrepareSub: no flow is free"}));
    }
    api::Reply reply;
    options_.describe(its.flow_id, *reply.mutable_prepare_sub()->mutable_endpoint());
    respond(std::move(reply));
  });
}

void Service::release_flow(std::uint32_t flow_id, std::function<void()> then) {
  data_path_.inbox().post([this, flow_id, then = std::move(then)] {
    data_path_.release(flow_id, [this, flow_id, then](std::unique_ptr<Flow> flow) {
      flow.reset();
      control_.post([this, flow_id, then] {
        if (flow_id != 0) {
          flow_ids_.release(flow_id);
        }
        then();
      });
    });
  });
}

void Service::start_sub(api::StartSub& request, const Respond& respond) {
  auto start = parse_flow(request.peer(), request.secret(), "StartSub");
  wipe_secret(*request.mutable_secret());
  const auto found = find_sub(request.vm_uuid(), request.store_id(), "StartSub");
  if (!start || !found) {
    return respond(refusal(!start ? start.error() : found.error()));
  }
  SplitSub& sub = *found->second;
  std::string serialised = request.SerializeAsString();
  if (sub.started && sub.start_request == serialised && sub.secret == start->secret) {
    return respond({});
  }
  const auto local = source_address(options_, start->peer);
  if (sub.flow_id == 0 || sub.started || sub.changing || !local) {
    return respond(refusal(!local ? local.error() : bad_request("StartSub: PrepareSub comes before")));
  }
  sub.started = true;
  sub.start_request = std::move(serialised);
  sub.secret = start->secret;
  sub.reason = "the sub host has not answered yet";
  const FlowConfig config = flow_config(options_, {sub.flow_id, sub.cipher, true}, *start, *local,
                                        static_cast<std::uint16_t>(data_path_.lcore_count()));
  const Id128 vm = parse_id(request.vm_uuid(), "").value();
  data_path_.inbox().post([this, config, split = guests_.at(vm).guest->split, number = sub.sub] {
    const Instant now = port::now();
    data_path_.add(std::make_unique<MainFlow>(config, split, number, now), now);
  });
  respond({});
}

// ---- the end ----

/// All of it is here: takes the pager off while the lcore still reads faults, then everything else.
void Service::gathered(const Id128& vm) {
  const auto found = guests_.find(vm);
  const auto session = splits_.find(vm);
  if (found == guests_.end() || found->second.state != Entry::State::kReady || session == splits_.end() ||
      session->second.busy || found->second.guest->paging) {
    return;  // with paging: once its migration has ended; busy: when it is told again
  }
  session->second.busy = true;
  auto ended = std::make_shared<std::expected<void, memory::Error>>();
  found->second.worker->submit([ended, split = found->second.guest->split] { *ended = split->end(); }, control_,
                               [this, ended, vm] {
                                 if (!*ended) {
                                   splits_.at(vm).busy = false;
                                   spdlog::error("VM {}: its faults are still ours: {}", vm.text(),
                                                 printable(ended->error().text));
                                   return;
                                 }
                                 end_split(vm, [this, vm] {
                                   LiveSplit::remove_files(options_.missing_dir, vm);
                                   spdlog::info("VM {}: gathered", vm.text());
                                   api::Event event;
                                   event.mutable_gathered()->set_vm_uuid(vm.to_bytes());
                                   emit_(event);
                                 });
                               });
}

/// No lcore knows of it any more when `then` runs, nor its evictor; the files stay.
void Service::end_split(const Id128& vm, std::function<void()> then) {
  const auto split = guests_.at(vm).guest->split;
  std::vector<std::uint32_t> flows;
  if (const auto session = splits_.find(vm); session != splits_.end()) {
    for (const auto& [id, sub] : session->second.subs) {
      if (sub.flow_id != 0) {
        flows.push_back(sub.flow_id);
      }
    }
    splits_.erase(session);
  }
  if (!split) {
    return then();
  }
  for (const std::uint32_t flow : flows) {
    release_flow(flow, [] {});
  }
  guests_.at(vm).worker->submit([split] { split->stop_evicting(); }, data_path_.inbox(),
                                [this, vm, split, then] {
                                  data_path_.unwatch(split);
                                  control_.post([this, vm, then] {
                                    if (const auto found = guests_.find(vm);
                                        found != guests_.end() && found->second.guest) {
                                      found->second.guest->split.reset();
                                    }
                                    then();
                                  });
                                });
}

void Service::give_up_split(const Id128& vm) {
  end_split(vm, [this, vm] { LiveSplit::remove_files(options_.missing_dir, vm); });
}

// ---- status ----

void Service::fill_status(const Id128& vm, api::SplitStatus& status) const {
  const Guest& guest = *guests_.at(vm).guest;
  const LiveSplit& split = *guest.split;
  const SplitFigures figures = split.figures();
  const SplitLimits limits = split.limits();
  status.set_vm_uuid(vm.to_bytes());
  status.set_budget_bytes(limits.budget_pages * pages::kPageSize);
  status.set_resident_bytes(guest.memory->ram().resident_bytes().value_or(0));
  status.set_pages_total(guest.memory->page_count());
  status.set_pages_missing(split.missing_count());
  status.set_pages_leaving(figures.leaving_pages);
  status.set_pages_blocking(figures.main.blocked_pages);
  status.set_gathering(limits.gather);
  status.set_problem(printable(split.problem(), kTextBytesMax));
  status.set_evicted_pages(figures.evictor.evicted_pages);
  status.set_evicted_zero_pages(figures.evictor.zero_pages);
  status.set_evicted_unsent_pages(figures.main.unsent_pages);
  status.set_refetched_pages(figures.main.refetched_pages);
  status.set_recalled_pages(figures.main.recalled_pages);
  status.set_prefetched_pages(figures.main.prefetched_pages);
  status.set_moved_pages(figures.main.moved_pages);
  to_api(figures.pager, *status.mutable_paging());
  for (const auto& [id, sub] : splits_.at(vm).subs) {
    api::SubStatus& its = *status.add_subs();
    const auto counted = figures.subs.find(sub.sub);
    const split::SubStats stats = counted != figures.subs.end() ? counted->second : split::SubStats{};
    its.set_store_id(id.to_bytes());
    its.set_sub(sub.sub);
    its.set_connected(sub.started && stats.connected);
    its.set_reason(its.connected() ? "" : printable(sub.reason, kTextBytesMax));
    its.set_pages_held(stats.held_pages);
    its.set_pages_copied(stats.copied_pages);
    its.set_pages_leaving(stats.leaving_pages);
    its.set_full(stats.full);
    its.set_draining(stats.draining);
    its.set_drained(stats.drained);
    its.set_pages_lost(stats.lost_pages);
    add_runs(stats.lost, *its.mutable_lost());
    add_runs(stats.blocking, *its.mutable_blocking());
  }
}

}  // namespace godwit::daemon
