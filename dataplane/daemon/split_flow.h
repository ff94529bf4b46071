#pragma once
// The flow between a main host and a page store, at either end: the priority lane and one bulk lane, both the home
// lcore's. Owned and called by its DataPath. Failure: the main host's side tells LiveSplit; the sub host's calls
// `lost`, once, on the lcore, and does no more until it is taken away.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

#include "base/single_writer.h"
#include "base/uuid.h"
#include "dataplane/daemon/flow.h"
#include "dataplane/daemon/live_split.h"
#include "dataplane/daemon/store_access.h"
#include "dataplane/memserver/cold_pages.h"
#include "dataplane/split/sub_host.h"

namespace godwit::daemon {

class MainFlow final : public Flow {
 public:
  MainFlow(const FlowConfig& config, std::shared_ptr<LiveSplit> split, split::SubId sub, Instant now)
      : Flow(config, true), split_(std::move(split)), sub_(sub) {
    transport::LaneUser& user = split_->main().begin_link(sub_);
    lanes_.add(0, user, now);
    lanes_.add(1, user, now);
  }
  ~MainFlow() override { split_->main().end_link(sub_); }

  void start(Instant now) override { split_->main().start_link(now, sub_, lanes_.lane(0), lanes_.lane(1)); }
  bool pump(Instant) override { return false; }  // LiveSplit has a turn of its own
  void flush(Instant) override {}
  void tick(Instant now) override { lanes_.tick(now); }
  [[nodiscard]] Instant deadline() const override { return lanes_.deadline(); }
  [[nodiscard]] Duration smoothed_rtt() const { return lanes_.lane(0).smoothed_rtt(); }

 private:
  const std::shared_ptr<LiveSplit> split_;
  const split::SubId sub_;
};

/// A page store that is open on this host. The home lcore's while a flow has it; figures for any thread.
struct OpenStore {
  OpenStore(memserver::PageStore opened, memserver::VmNumber vm) : store(std::move(opened)), access(store, vm) {
    publish();
  }
  void publish() {
    const memserver::StoreStats stats = store.stats();
    pages_held = stats.pages;
    zero_pages = stats.zero_pages;
    pages_max = stats.pages_max;
    resident_bytes = stats.resident_bytes + stats.index_bytes;
  }
  memserver::PageStore store;
  PageStoreAccess access;
  SingleWriter<std::uint64_t> pages_held, zero_pages, pages_max, resident_bytes;
  std::atomic<bool> connected{false};
};

class StoreFlow final : public Flow {
 public:
  StoreFlow(const FlowConfig& config, std::shared_ptr<OpenStore> store, const split::StoreId& id, std::uint64_t pages,
            std::function<void(const std::string&)> lost, Instant now)
      : Flow(config, false),
        store_(std::move(store)),
        sub_(store_->access, id, pages),
        cold_(store_->store),
        lost_(std::move(lost)) {
    lanes_.add(0, sub_, now);
    lanes_.add(1, sub_, now);
  }
  ~StoreFlow() override {
    store_->publish();
    store_->connected = false;
  }

  void start(Instant now) override { sub_.start(now, lanes_.lane(0), lanes_.lane(1)); }
  bool pump(Instant now) override {
    const bool due = sub_.deadline() <= now;
    if (due) {
      turn(now);
    }
    if (sub_.listed_all()) {
      cold_.turn(now);
    }
    return due;
  }
  void flush(Instant now) override { turn(now); }
  void tick(Instant now) override {
    lanes_.tick(now);
    turn(now);
  }
  [[nodiscard]] Instant deadline() const override {
    return std::min({lanes_.deadline(), sub_.deadline(), sub_.listed_all() ? cold_.deadline() : kNever});
  }

 private:
  static constexpr Duration kPublishEvery = milliseconds(100);
  void turn(Instant now) {
    if (const auto why = sub_.turn(now)) {
      lost_(*why);
    }
    store_->connected = sub_.connected();
    if (now >= publish_at_) {
      store_->publish();
      publish_at_ = now + kPublishEvery;
    }
  }

  const std::shared_ptr<OpenStore> store_;
  split::SubHost sub_;
  memserver::ColdPages cold_;
  const std::function<void(const std::string&)> lost_;
  Instant publish_at_{};
};

}  // namespace godwit::daemon
