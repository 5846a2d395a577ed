// Errors are values: every fallible call of the library returns a Status, and no exception crosses the API.
#pragma once

#include <string>
#include <utility>

#if defined(_WIN32)
#define FDPP_API __declspec(dllexport)
#else
#define FDPP_API __attribute__((visibility("default")))
#endif

namespace fdpp {

enum class StatusCode {
  ok,
  invalid_argument,  // the caller's tensors or attributes are wrong; the message names which
  not_supported,     // correct input that no kernel of this build takes
  device_error,      // the GPU or its runtime reported an error
  out_of_memory,
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

inline Status invalid_argument(std::string message) { return {StatusCode::invalid_argument, std::move(message)}; }
inline Status not_supported(std::string message) { return {StatusCode::not_supported, std::move(message)}; }
inline Status device_error(std::string message) { return {StatusCode::device_error, std::move(message)}; }

}  // namespace fdpp

#define FDPP_RETURN_IF_ERROR(expression)              \
  do {                                                \
    ::fdpp::Status fdpp_status_ = (expression);       \
    if (!fdpp_status_.ok()) return fdpp_status_;      \
  } while (0)
