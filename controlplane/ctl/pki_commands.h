#pragma once
// `godwitctl pki init | issue | show`: works on a directory of files, asks no control plane. One thread.

#include <CLI/CLI.hpp>
#include <functional>

namespace godwit::ctl {

/// Adds the commands; `chosen` receives what is to be run, which prints its result and returns the exit status. `json`
/// is read when it runs.
void add_pki_commands(CLI::App& app, const bool& json, const std::function<void(std::function<int()>)>& chosen);

}  // namespace godwit::ctl
