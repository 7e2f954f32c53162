/* The shapes of /v1/completions: chunks of a stream and the whole body. Loop thread. */
#pragma once

#include "api/session.h"

/* Prepares what all chunks share. false: out of memory. */
bool sq_completion_shape(struct sq_session *s);
/* One chunk of choice c with the text in c->text, which is emptied; with a finish reason once c->end is set. */
void sq_completion_chunk(struct sq_session *s, struct sq_choice *c);
/* All choices ended: the usage chunk where it was asked for, then [DONE]. */
void sq_completion_stream_end(struct sq_session *s);
/* The whole body. */
void sq_completion_body(struct sq_session *s, struct sq_wbuf *o);
