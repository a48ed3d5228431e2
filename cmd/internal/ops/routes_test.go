package ops

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
)

// TestS2_25_NodesWithOtherRoutes: who has not taken a change is named, once there was time to take it.
func TestS2_25_NodesWithOtherRoutes(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	node := func(name, routes string, ago time.Duration) queue.Node {
		return queue.Node{Name: name, Seen: now, Facts: map[string]string{"routes": routes + " since " + now.Add(-ago).Format(time.RFC3339)}}
	}
	tests := []struct {
		name  string
		nodes []queue.Node
		want  []string
	}{
		{"none", []queue.Node{{Name: "signer", Seen: now}}, nil},
		{"the same", []queue.Node{node("a", "12, file sha256:1", time.Hour), node("b", "12, file sha256:1", 2*time.Hour)}, nil},
		{"one is behind", []queue.Node{node("a", "12, file sha256:2", 2*time.Minute), node("b", "12, file sha256:1", time.Hour), node("c", "12, file sha256:2", 2*time.Minute)}, []string{"b"}},
		{"one is behind for a moment", []queue.Node{node("a", "12, file sha256:2", 10*time.Second), node("b", "12, file sha256:1", time.Hour)}, nil},
		{"one has ended", []queue.Node{node("a", "1", 2*time.Minute), {Name: "b", Seen: now.Add(-time.Minute), Facts: map[string]string{"routes": "2 since " + now.Add(-time.Hour).Format(time.RFC3339)}}}, nil},
	}
	for _, tt := range tests {
		st := &Status{Nodes: tt.nodes}
		st.judgeRoutes(now)
		var got []string
		for _, a := range st.Attention {
			got = append(got, a.Nodes...)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
