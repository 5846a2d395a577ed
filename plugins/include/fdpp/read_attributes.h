// The ops' attributes out of whatever a runtime keeps them in: the one list of their names.
//
// A Source has `Status attribute(const char* name, X* out) const` for X = int64_t, bool, float and std::string, which
// leaves `out` as it is where the attribute is absent.
#pragma once

#include <string>

#include "fdpp/attention.h"
#include "fdpp/gemm.h"

namespace fdpp {

template <typename Source>
Status read_attributes(const Source& source, AttentionAttributes* out) {
  FDPP_RETURN_IF_ERROR(source.attribute("num_heads", &out->num_heads));
  FDPP_RETURN_IF_ERROR(source.attribute("kv_num_heads", &out->kv_num_heads));
  FDPP_RETURN_IF_ERROR(source.attribute("scale", &out->scale));
  FDPP_RETURN_IF_ERROR(source.attribute("softcap", &out->softcap));
  FDPP_RETURN_IF_ERROR(source.attribute("local_window_size", &out->local_window_size));
  FDPP_RETURN_IF_ERROR(source.attribute("do_rotary", &out->do_rotary));
  FDPP_RETURN_IF_ERROR(source.attribute("rotary_interleaved", &out->rotary_interleaved));
  FDPP_RETURN_IF_ERROR(source.attribute("rotary_embedding_dim", &out->rotary_embedding_dim));
  std::string text = softmax_mode_name(out->softmax_mode);
  FDPP_RETURN_IF_ERROR(source.attribute("softmax_mode", &text));
  FDPP_RETURN_IF_ERROR(parse_softmax_mode(text, &out->softmax_mode));
  FDPP_RETURN_IF_ERROR(source.attribute("phi_lower", &out->phi_lower));
  FDPP_RETURN_IF_ERROR(source.attribute("phi_upper", &out->phi_upper));
  FDPP_RETURN_IF_ERROR(source.attribute("qk_norm_epsilon", &out->qk_norm_epsilon));
  for (auto [name, field] : {std::pair{"k_quant_type", &out->k_quant_type}, {"v_quant_type", &out->v_quant_type}}) {
    text = cache_quantization_name(*field);
    FDPP_RETURN_IF_ERROR(source.attribute(name, &text));
    FDPP_RETURN_IF_ERROR(parse_cache_quantization(name, text, field));
  }
  return {};
}

template <typename Source>
Status read_attributes(const Source& source, GemmAttributes* out) {
  FDPP_RETURN_IF_ERROR(source.attribute("N", &out->n));
  FDPP_RETURN_IF_ERROR(source.attribute("K", &out->k));
  FDPP_RETURN_IF_ERROR(source.attribute("weight_format", &out->weight_format));
  FDPP_RETURN_IF_ERROR(source.attribute("block_size", &out->block_size));
  FDPP_RETURN_IF_ERROR(source.attribute("activation", &out->activation));
  FDPP_RETURN_IF_ERROR(source.attribute("norm", &out->norm));
  FDPP_RETURN_IF_ERROR(source.attribute("norm_epsilon", &out->norm_epsilon));
  return source.attribute("accuracy_level", &out->accuracy_level);
}

}  // namespace fdpp
