#include "dispatch/json_reader.h"

#include <algorithm>
#include <charconv>
#include <vector>

namespace fdpp {

Status JsonReader::bad(const std::string& what) const {
  const std::string_view before = text_.substr(0, at_);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t start = before.rfind('\n');
  const size_t column = at_ - (start == std::string_view::npos ? 0 : start + 1) + 1;
  return invalid_argument(name_ + ":" + std::to_string(line) + ":" + std::to_string(column) + ": " + what);
}

std::string JsonReader::here() const {
  if (at_ >= text_.size()) return "the end";
  const char c = text_[at_];
  return c > ' ' && c <= '~' ? std::string("'") + c + "'" : "byte " + std::to_string(static_cast<unsigned char>(c));
}

void JsonReader::skip_space() {
  at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
}

bool JsonReader::take(char c) {
  skip_space();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

Status JsonReader::expect(char c) {
  return take(c) ? Status() : bad(std::string("expected '") + c + "', found " + here());
}

Status JsonReader::object(std::initializer_list<Member> members) {
  FDPP_RETURN_IF_ERROR(expect('{'));
  std::vector<bool> seen(members.size(), false);
  if (!take('}')) {
    do {
      std::string key;
      FDPP_RETURN_IF_ERROR(text(&key));
      const auto member =
          std::find_if(members.begin(), members.end(), [&key](const Member& m) { return key == m.name; });
      if (member == members.end()) return bad("\"" + key + "\" is not known here");
      const auto index = static_cast<size_t>(member - members.begin());
      if (seen[index]) return bad("\"" + key + "\" is given twice");
      seen[index] = true;
      FDPP_RETURN_IF_ERROR(expect(':'));
      FDPP_RETURN_IF_ERROR(member->read());
    } while (take(','));
    FDPP_RETURN_IF_ERROR(expect('}'));
  }
  for (size_t i = 0; i < members.size(); ++i) {
    const Member& m = members.begin()[i];
    if (m.required && !seen[i]) return bad(std::string("\"") + m.name + "\" is missing");
  }
  return {};
}

Status JsonReader::array(const std::function<Status()>& element) {
  FDPP_RETURN_IF_ERROR(expect('['));
  if (take(']')) return {};
  do {
    FDPP_RETURN_IF_ERROR(element());
  } while (take(','));
  return expect(']');
}

Status JsonReader::text(std::string* out) {
  if (!take('"')) return bad("expected text, found " + here());
  out->clear();
  for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
    char c = text_[at_];
    // Messages and reasons quote it, and whoever reads those wants text.
    if (c < ' ' || c > '~') return bad("text holds " + here() + ", expected printable ASCII");
    if (c == '\\') {
      // Names of devices, variants and files have no use for the other escapes.
      if (++at_ == text_.size() || (text_[at_] != '"' && text_[at_] != '\\' && text_[at_] != '/'))
        return bad("expected '\"', '\\' or '/' after a '\\', found " + here());
      c = text_[at_];
    }
    *out += c;
  }
  return expect('"');
}

Status JsonReader::integer(int64_t least, int64_t most, int64_t* out) {
  skip_space();
  const char* const first = text_.data() + at_;
  const char* const last = text_.data() + text_.size();
  const auto [stop, error] = std::from_chars(first, last, *out);
  const bool whole = stop == last || (*stop != '.' && *stop != 'e' && *stop != 'E');
  if (error == std::errc::invalid_argument || !whole) return bad("expected a whole number, found " + here());
  if (error != std::errc() || *out < least || *out > most)
    return bad("expected a number from " + std::to_string(least) + " to " + std::to_string(most) + ", found " +
               std::string(first, stop));
  at_ += static_cast<size_t>(stop - first);
  return {};
}

Status JsonReader::end() {
  skip_space();
  return at_ == text_.size() ? Status() : bad("expected the end, found " + here());
}

}  // namespace fdpp
