package daemon

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/ingress"
	"postroad/queue"
)

func TestChooseSockets(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close() }()
	wanted := map[string]bool{"smtp": true}
	for _, tt := range []struct {
		name  string
		named map[string][]net.Listener
		want  string // of the error
	}{
		{"as wanted", map[string][]net.Listener{"smtp": {tcp}}, ""},
		{"none", nil, ""}, // the listener says that its socket is missing
		{"one more", map[string][]net.Listener{"smtp": {tcp}, "smtps": {tcp}}, "no listener has the address systemd:smtps"},
		{"two of one name", map[string][]net.Listener{"smtp": {tcp, tcp}}, "2 sockets"},
		{"no stream", map[string][]net.Listener{"smtp": {nil}}, "no stream socket"},
		{"unix", map[string][]net.Listener{"smtp": {unix}}, "no TCP socket"},
	} {
		got, err := chooseSockets(tt.named, wanted)
		switch {
		case tt.want == "" && (err != nil || len(got) != len(tt.named)):
			t.Errorf("%s: got %v, %v", tt.name, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got error %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What anybody may send is bounded, whatever clients may do, until a class of that name says something else.
func TestE6_79_StrangersAreBounded(t *testing.T) {
	in := &config.Ingress{Classes: []config.ClientClass{{Name: config.ClassDefault, OverLimit: config.OverLimitReject}}}
	want := queue.Limit{Count: config.DefaultBounceRecipients, Window: time.Hour}
	if got := policyOf(in).Classes[ingress.BounceClass]; got.Together != want || got.RejectOverLimit {
		t.Errorf("got %+v, want %+v together", got, want)
	}
	in.Classes = append(in.Classes, config.ClientClass{Name: ingress.BounceClass, ClassRecipients: 5, ClassWindow: time.Minute})
	if got := policyOf(in).Classes[ingress.BounceClass].Together; got != (queue.Limit{Count: 5, Window: time.Minute}) {
		t.Errorf("got %+v, want what the class says", got)
	}
}
