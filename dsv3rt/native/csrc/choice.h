// Operators that choose tokens; see choice.cpp.
#pragma once
#include <tuple>

#include "dsv3rt_native.h"

std::tuple<Tensor, Tensor> greatest(const Tensor& x, int64_t wanted);
std::tuple<Tensor, Tensor, Tensor> draw_draft(const Tensor& logits, const Tensor& rule, const Tensor& uniform, int64_t wanted);
std::tuple<Tensor, Tensor, Tensor> settle_drafts(const Tensor& drafts, const Tensor& logits, const Tensor& draft_ids,
                                                 const Tensor& draft_probs, const Tensor& rule, const Tensor& uniforms);
