package broker_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
	"github.com/getmonroe/monroe/host/journal"
)

// Every part of a batch goes through the door by itself: the refused one stops
// nothing, the one that asks makes the batch wait, and what was done before the
// wait is not done again.
func TestABatchIsItsParts(t *testing.T) {
	h := newHouse(t)
	raw := request(abi.OpBatch, fmt.Sprintf(`{"requests":[%s,%s,%s,%s]}`,
		use(abi.OpToolCall, "notes.read", "a", 0), `{"op":"no.such","v":1,"args":{}}`,
		use(abi.OpSend, "mail.send", "bob", 0), request(abi.OpTimeNow, `{}`)))
	h.ok(1, request(abi.OpTimeNow, `{}`))
	h.waits(2, raw, host.WaitApproval)
	h.performed(1) // the read
	h.crash()
	h.ok(1, request(abi.OpTimeNow, `{}`))
	h.waits(2, raw, host.WaitApproval)
	h.performed(1)
	h.answer(journal.Part(2, 2), true)
	h.resume()
	h.ok(1, request(abi.OpTimeNow, `{}`))

	first := h.ok(2, raw)
	h.performed(2)
	var got abi.BatchResult
	if err := json.Unmarshal(first.OK, &got); err != nil || len(got.Replies) != 4 {
		t.Fatalf("%s: %v", first.OK, err)
	}
	for i, refused := range []bool{false, true, false, false} {
		if (got.Replies[i].Error != nil) != refused {
			t.Errorf("part %d: %+v", i, got.Replies[i])
		}
	}
	if code := got.Replies[1].Error.Code; code != abi.Unsupported {
		t.Errorf("the unknown op is %s", code)
	}
	h.ok(3, request(abi.OpKVPut, `{"key":"a","value":1}`)) // the calls after a batch keep their numbers
	h.crash()
	h.ok(1, request(abi.OpTimeNow, `{}`))
	if again := h.ok(2, raw); string(again.OK) != string(first.OK) {
		t.Errorf("replayed:\n%s\nfirst:\n%s", again.OK, first.OK)
	}
	h.performed(2)
	if n := len(h.s.Log.Answered()); n != 3 {
		t.Errorf("%d answers can be pushed ahead, want the guest's 3 calls", n)
	}
	h.books()
}
