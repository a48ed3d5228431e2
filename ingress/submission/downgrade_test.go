package submission

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDowngrade: row E1-19, what becomes of octets outside of ASCII without SMTPUTF8.
func TestDowngrade(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"one word", "Subject: Grüße\n", "Subject: =?UTF-8?B?R3LDvMOfZQ==?=\n"},
		{"no blank behind the colon", "Subject:ü\n", "Subject: =?UTF-8?B?w7w=?=\n"},
		{"words between words", "Subject: Die Grüße aus Köln sind da \n", "Subject: Die =?UTF-8?B?R3LDvMOfZQ==?= aus =?UTF-8?B?S8O2bG4=?= sind da \n"},
		{"words side by side", "Subject: schöne  Grüße!\n", "Subject: =?UTF-8?B?c2Now7ZuZSAgR3LDvMOfZSE=?=\n"},
		{"base64 where it is shorter", "Subject: Привет\n", "Subject: =?UTF-8?B?0J/RgNC40LLQtdGC?=\n"},
		{"a long text is folded", "Subject: съешь ещё этих мягких французских булок, да выпей чаю, съешь ещё этих\n",
			"Subject: =?UTF-8?B?0YHRitC10YjRjCDQtdGJ0ZEg0Y3RgtC40YUg0LzRj9Cz0LrQuNGFINGE?=\n" +
				" =?UTF-8?B?0YDQsNC90YbRg9C30YHQutC40YUg0LHRg9C70L7Quiwg0LTQsCDQstGL0L8=?=\n" +
				" =?UTF-8?B?0LXQuSDRh9Cw0Y4sINGB0YrQtdGI0Ywg0LXRidGRINGN0YLQuNGF?=\n"},
		{"folding inside", "Subject: ein\n Grüße\n\tGrüße\n Ende\n", "Subject: ein\n =?UTF-8?B?R3LDvMOfZQlHcsO8w59l?=\n Ende\n"},
		{"lines that get too long are broken", "Subject: eine Zeile die lang genug ist und dann ein Wort mit Strichpunkten: Köln; Ende\n",
			"Subject: eine Zeile die lang genug ist und dann ein Wort mit Strichpunkten:\n =?UTF-8?B?S8O2bG47?= Ende\n"},
		{"beside an encoded word", "Subject: =?utf-8?q?=C3=BC?= ü =?utf-8?q?=C3=BC?= x\n",
			"Subject: =?utf-8?q?=C3=BC?= =?UTF-8?Q?_=C3=BC_?= =?utf-8?q?=C3=BC?= x\n"},
		{"beside a broken encoded word", "Subject: =?x ü\n", "Subject: =?UTF-8?B?PT94IMO8?=\n"},
		{"not UTF-8", "Subject: Gr\xfc\xdfe\n", "Subject: =?unknown-8bit?B?R3L832U=?=\n"},
		{"a field that nobody knows", "X-Größe: 1\nX-Size: groß\n", ""},
		{"extension field", "X-Size: groß\n", "X-Size: =?UTF-8?B?Z3Jvw58=?=\n"},
		{"controls go inside", "Subject: ü\x07\n", "Subject: =?UTF-8?B?w7wH?=\n"},

		{"display name", "To: Jörg Müller <j@a.test>\n", "To: =?UTF-8?B?SsO2cmcgTcO8bGxlcg==?= <j@a.test>\n"},
		{"display name of one word in 8-bit", "To: Jörg Doe <j@a.test>\n", "To: =?UTF-8?B?SsO2cmc=?= Doe <j@a.test>\n"},
		{"quoted display name", `To: "Müller, Jörg \"J\"" <j@a.test>` + "\n", "To: =?UTF-8?B?TcO8bGxlciwgSsO2cmcgIkoi?= <j@a.test>\n"},
		{"quoted beside a word", `To: "a,b"ü <j@a.test>` + "\n", "To: =?UTF-8?B?YSxiw7w=?= <j@a.test>\n"},
		{"no blanks", "To:ü<j@a.test>,ö<k@a.test>\n", "To: =?UTF-8?B?w7w=?= <j@a.test>, =?UTF-8?B?w7Y=?= <k@a.test>\n"},
		{"bracket in the name", "To: [ü] x <j@a.test>\n", "To: =?UTF-8?B?W8O8XQ==?= x <j@a.test>\n"},
		{"comment", "To: j@a.test (Jörg (der Große) M\\)), k@a.test\n", "To: j@a.test (=?UTF-8?B?SsO2cmc=?= (der =?UTF-8?B?R3Jvw59l?=) M\\)), k@a.test\n"},
		{"comment inside a name", "To: Jörg (ü) Müller <j@a.test>\n", "To: =?UTF-8?B?SsO2cmc=?= (=?UTF-8?B?w7w=?=) =?UTF-8?Q?M=C3=BCller?= <j@a.test>\n"},
		{"group", "To: Füchse: a@b.test, Jörg <j@a.test>;\n", "To: =?UTF-8?Q?F=C3=BCchse?= : a@b.test, =?UTF-8?B?SsO2cmc=?= <j@a.test>;\n"},
		{"domain", "To: j@bücher.test, <k@BÜCHER.test>\n", "To: j@xn--bcher-kva.test, <k@xn--bcher-kva.test>\n"},
		{"many recipients", "Cc: Jörg <j@a.test>, Jörg <k@a.test>,Jörg <l@a.test>\n",
			"Cc: =?UTF-8?B?SsO2cmc=?= <j@a.test>, =?UTF-8?B?SsO2cmc=?= <k@a.test>,\n =?UTF-8?B?SsO2cmc=?= <l@a.test>\n"},
		{"resent", "Resent-To: Jörg <j@a.test>\n", "Resent-To: =?UTF-8?B?SsO2cmc=?= <j@a.test>\n"},
		{"list id", "List-Id: Füchse <f.a.test>\n", "List-Id: =?UTF-8?Q?F=C3=BCchse?= <f.a.test>\n"},
		{"keywords", "Keywords: Köln, \"Bonn, Süd\", x\n", "Keywords: =?UTF-8?B?S8O2bG4=?= , =?UTF-8?Q?Bonn=2C_S=C3=BCd?= , x\n"},
		{"comment in a date", "Date: Tue, 25 Nov 2025 10:00:00 +0100 (Mitteleuropäische Zeit)\n",
			"Date: Tue, 25 Nov 2025 10:00:00 +0100 (=?UTF-8?Q?Mitteleurop=C3=A4ische?=\n Zeit)\n"},

		{"file name", "Content-Disposition: attachment; filename=\"Bäume und mehr.txt\"; size=1\n",
			"Content-Disposition: attachment; filename*=UTF-8''B%C3%A4ume%20und%20mehr.txt;\n size=1\n"},
		{"file name without quotes", "Content-Disposition: attachment;filename=Bäume und mehr.txt\n",
			"Content-Disposition: attachment; filename*=UTF-8''B%C3%A4ume%20und%20mehr.txt\n"},
		{"file name with quoted pairs", `Content-Type: text/plain; Name = "ä\"\\" ; charset=utf-8` + "\n",
			"Content-Type: text/plain; Name*=UTF-8''%C3%A4%22%5C; charset=utf-8\n"},
		{"file name not in UTF-8", "Content-Disposition: inline; filename=\"\xe4\"\n", "Content-Disposition: inline; filename*=unknown-8bit''%E4\n"},
		{"long file name", "Content-Disposition: attachment;\n\tfilename=\"" + strings.Repeat("ä", 20) + ".txt\"\n",
			"Content-Disposition: attachment;\n\tfilename*0*=UTF-8''%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4;\n" +
				" filename*1*=%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4;\n filename*2*=%C3%A4.txt\n"},
		{"comment in a content type", "Content-Type: text/plain (schön); charset=utf-8 (ü)\n",
			"Content-Type: text/plain (=?UTF-8?B?c2Now7Zu?=); charset=utf-8\n (=?UTF-8?B?w7w=?=)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const from = "From: a@b.test\n"
			got, err := Fix(crlf(from+tt.in), Options{})
			if tt.want == "" {
				if err == nil {
					t.Fatalf("got %q, want an error", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, strings.TrimPrefix(lf(got), from)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
