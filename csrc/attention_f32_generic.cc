#define RANVIER_T float
#define RANVIER_ATTENTION attention_generic_f32
#include "attention_body.h"
