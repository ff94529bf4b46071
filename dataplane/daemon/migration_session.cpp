#include "dataplane/daemon/migration_session.h"

#include <utility>

#include "base/log.h"

namespace godwit::daemon {

void EventRelay::post(api::Event event, bool failed) {
  control_.post([deliver = deliver_, event = std::move(event), failed] { deliver(event, failed); });
}

void EventRelay::on_progress(const transfer::Stats& stats) {
  api::Event event;
  event.mutable_progress()->set_migration_id(migration_id_);
  to_api(stats, *event.mutable_progress()->mutable_stats());
  post(std::move(event));
}

void EventRelay::on_ready_to_switch(Duration estimated_downtime) {
  api::Event event;
  event.mutable_ready_to_switch()->set_migration_id(migration_id_);
  event.mutable_ready_to_switch()->set_estimated_downtime_us(static_cast<std::uint64_t>(estimated_downtime.us()));
  post(std::move(event));
}

void EventRelay::on_source_done(const transfer::Stats& stats) {
  api::Event event;
  event.mutable_source_done()->set_migration_id(migration_id_);
  to_api(stats, *event.mutable_source_done()->mutable_stats());
  post(std::move(event));
}

void EventRelay::on_device_state(std::span<const std::byte> data, bool end) {
  api::Event event;
  event.mutable_device_state()->set_migration_id(migration_id_);
  event.mutable_device_state()->set_data(data.data(), data.size());
  event.mutable_device_state()->set_end(end);
  post(std::move(event));
}

void EventRelay::on_memory_ready(std::uint64_t pages_checked) {
  api::Event event;
  event.mutable_memory_ready()->set_migration_id(migration_id_);
  event.mutable_memory_ready()->set_pages_checked(pages_checked);
  post(std::move(event));
}

void EventRelay::on_failed(transfer::Failure failure, const std::string& text) {
  api::Event event;
  event.mutable_migration_failed()->set_migration_id(migration_id_);
  event.mutable_migration_failed()->mutable_error()->set_code(to_api(failure));
  event.mutable_migration_failed()->mutable_error()->set_text(printable(text, kTextBytesMax));
  post(std::move(event), true);
}

}  // namespace godwit::daemon
