package journal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/host/journal"
	"github.com/getmonroe/monroe/host/label"
	"github.com/getmonroe/monroe/host/store"
)

// turn is one call of a conversation, as the guest asks it and as it leaves.
type turn struct {
	request, wire []byte
	plan          connectors.Plan
}

// conversation makes turns that each send all that was said before, with the tools
// behind it. At every tenth the agent rewrites what it holds, as agents do.
func conversation(turns int) (list []turn, said int) {
	tools := strings.Repeat(`{"name":"search","description":"looks for things"},`, 200)
	var messages []string
	for i := range turns {
		m := fmt.Sprintf(`{"role":"user","content":"%d %s"}`, i, strings.Repeat(string(rune('a'+i%26)), 600))
		messages, said = append(messages, m), said+len(m)
		if i%10 == 9 {
			messages = append([]string{fmt.Sprintf(`{"role":"system","content":"summary %d"}`, i)}, messages[len(messages)/2:]...)
		}
		all := strings.Join(messages, ",")
		t := turn{request: fmt.Appendf(nil, `{"args":{"messages":[%s],"tools":[%s]},"op":"llm.chat","v":1}`, all, tools)}
		t.wire = fmt.Appendf(nil, `{"messages":[%s],"model":"m","tools":[%s],"stream":true}`, all, tools)
		t.plan = connectors.Plan{Resources: []string{"model:m"}, Destination: "d", Frozen: connectors.Frozen{HTTP: &connectors.HTTPRequest{Method: "POST", URL: "https://model/v1", Body: t.wire}}}
		list = append(list, t)
	}
	return list, said
}

func (f *fixture) converse(t *testing.T, turns []turn) {
	t.Helper()
	log := f.open(t)
	for i, x := range turns {
		plan, err := json.Marshal(x.plan)
		if err != nil {
			t.Fatal(err)
		}
		call := uint32(4 + i)
		b := journal.Body{Op: abi.OpLLMChat, Fingerprint: abi.Fingerprint(x.request), Operation: "llm.chat", Request: x.request, Plan: plan}
		err = errors.Join(log.Add(journal.Call, call, now, b, label.Clean()),
			log.Add(journal.Result, call, now, journal.Body{Reply: []byte(`{"ok":{}}`)}, label.Clean()))
		if err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 { // some turns share a transaction, and a log is opened anew now and then
			err = f.store.Write(t.Context(), log.Stage)
			log.Staged(err)
			if err != nil {
				t.Fatal(err)
			}
			if i%21 == 0 {
				log = f.open(t)
			}
		}
	}
	if err := f.store.Write(t.Context(), log.Stage); err != nil {
		t.Fatal(err)
	}
	f.load(t)
}

func TestAConversationGrowsWithItsTurnsNotWithTheirSquare(t *testing.T) {
	size := map[int]int64{}
	for _, turns := range []int{100, 200} {
		f := newFixture(t)
		before := f.row.JournalBytes
		list, said := conversation(turns)
		f.converse(t, list)
		size[turns] = f.row.JournalBytes - before
		var whole int64
		for _, x := range list {
			whole += int64(len(x.request) + len(x.wire)*4/3)
		}
		// Each message twice (as asked and as frozen), the rest once, and a constant each turn.
		if most := int64(2*said + turns*2000 + 40_000); size[turns] > most {
			t.Errorf("%d turns are %d bytes, at most %d were meant", turns, size[turns], most)
		}
		t.Logf("%d turns: %d bytes stored, %d whole", turns, size[turns], whole)
	}
	if size[200] > size[100]*22/10 {
		t.Errorf("100 turns are %d bytes, 200 are %d", size[100], size[200])
	}
}

// Each call, as it is found when a run stops right after it.
func TestEveryTurnIsPutTogetherBitByBit(t *testing.T) {
	f := newFixture(t)
	list, _ := conversation(60)
	f.converse(t, list)
	i := 0
	for k := range f.recs {
		if f.recs[k].Kind != string(journal.Call) || f.recs[k].Call < 4 {
			continue
		}
		row, recs := f.row, f.recs[:k+1]
		row.NextSeq, row.Chain = recs[k].Seq+1, recs[k].Chain
		log, err := journal.Open(&row, f.key, recs)
		if err != nil {
			t.Fatal(err)
		}
		e, err := log.Recall(recs[k].Call, abi.Fingerprint(list[i].request))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := list[i].plan.Digest()
		if got, err := e.Plan.Digest(); err != nil || got != want || !bytes.Equal(e.Request, list[i].request) || !bytes.Equal(e.Plan.Frozen.HTTP.Body, list[i].wire) {
			t.Errorf("turn %d is not what was recorded: %v", i, err)
		}
		i++
	}
	if i != len(list) {
		t.Errorf("%d turns of %d", i, len(list))
	}
}

func TestAFlippedBitInAnyLinkStopsTheRun(t *testing.T) {
	f := newFixture(t)
	list, _ := conversation(30)
	f.converse(t, list)
	for k := range f.recs {
		if f.recs[k].Kind != string(journal.Call) {
			continue
		}
		for _, at := range []int{0, len(f.recs[k].Body) / 2, len(f.recs[k].Body) - 1} {
			row, recs := f.copied()
			recs[k].Body[at] ^= 4
			rechain(&row, recs) // as somebody with the database would
			f.corrupt(t, fmt.Sprintf("record %d", recs[k].Seq), row, recs)
		}
	}
	// A link that is gone is missed by the next one, whatever the chain says.
	for k := range f.recs {
		if f.recs[k].Kind == string(journal.Call) && f.recs[k].Call == 10 {
			row, recs := f.copied()
			recs = slices.Delete(recs, k, k+1)
			rechain(&row, recs)
			f.corrupt(t, "a link is gone", row, recs)
		}
	}
}

// A large call with nothing before it, in a new segment too, is whole.
func TestASegmentsFirstCallIsWhole(t *testing.T) {
	f := newFixture(t)
	list, _ := conversation(3)
	f.converse(t, list)
	log := f.open(t)
	add := func(k journal.Kind, call uint32, b journal.Body) {
		t.Helper()
		if err := log.Add(k, call, now, b, label.Clean()); err != nil {
			t.Fatal(err)
		}
	}
	add(journal.Continue, 7, journal.Body{Op: abi.OpRunContinue, State: []byte(`1`), Segment: 2})
	plan, _ := json.Marshal(list[2].plan)
	add(journal.Call, 8, journal.Body{Op: abi.OpLLMChat, Request: list[2].request, Plan: plan})
	if err := f.store.Write(t.Context(), log.Stage); err != nil {
		t.Fatal(err)
	}
	f.load(t)
	var recs []store.Record
	if err := f.store.Read(t.Context(), func(tx *store.Tx) (err error) { recs, err = tx.Segment("run_1"); return err }); err != nil {
		t.Fatal(err)
	}
	if len(recs) != 2 {
		t.Fatalf("%d records in the segment", len(recs))
	}
	log, err := journal.Open(&f.row, f.key, recs)
	if err != nil {
		t.Fatal(err)
	}
	e, err := log.Recall(8, abi.Digest{})
	if err != nil || !bytes.Equal(e.Request, list[2].request) {
		t.Error(err)
	}
	// The beginning of a segment is sealed with what came before it.
	row := f.row
	for i := range recs {
		recs[i].Seq--
	}
	row.NextSeq--
	f.corrupt(t, "a segment moved", row, recs)
	f.corrupt(t, "a segment without its beginning", f.row, recs[1:])
}
