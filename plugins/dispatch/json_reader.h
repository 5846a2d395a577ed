// JSON as dispatch tables use it: objects of known members, arrays, text, whole numbers. Everything else is an error
// that says where. Nesting is as deep as the caller's own calls, so no input can exhaust the stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>

#include "fdpp/status.h"

namespace fdpp {

class JsonReader {
 public:
  struct Member {
    const char* name;
    std::function<Status()> read;
    bool required = true;
  };

  // `text` stays the caller's. `name` opens the messages.
  JsonReader(std::string name, std::string_view text) : name_(std::move(name)), text_(text) {}

  // Members may come in any order, each once; unknown ones are errors.
  Status object(std::initializer_list<Member> members);
  Status array(const std::function<Status()>& element);
  Status text(std::string* out);
  Status integer(int64_t least, int64_t most, int64_t* out);
  // Nothing but white space may follow.
  Status end();

  // "NAME:LINE:COLUMN: what", where the reader stands.
  Status bad(const std::string& what) const;

 private:
  void skip_space();
  bool take(char c);  // after white space
  Status expect(char c);
  std::string here() const;  // what comes next, for messages

  std::string name_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace fdpp
